"""`ResumingTrainer`: what transformers' `Trainer` lacks where a run is given again, after a kill or when it is done."""

from typing import Any

from transformers import EarlyStoppingCallback, Trainer


class ResumingTrainer(Trainer):
    """From a checkpoint with all its updates done, `train` loads and makes no more; patience outlasts a kill."""

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Trainer looks whether training is done behind an update only, so a finished run given once more would go on
        impatient = any(
            each.early_stopping_patience_counter >= each.early_stopping_patience for each in self._early_stopping()
        )
        if self.state.global_step >= self.state.max_steps or (self.state.global_step > 0 and impatient):
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _load_callback_state(self) -> None:
        """The evaluations in a row that were no better: Trainer's own starts to count anew, or drops a new patience."""
        super()._load_callback_state()
        saved: Any = self.state.stateful_callbacks
        for callback in self._early_stopping():
            if EarlyStoppingCallback.__name__ in saved:
                attributes = saved[EarlyStoppingCallback.__name__]["attributes"]
                callback.early_stopping_patience_counter = attributes["early_stopping_patience_counter"]

    def _early_stopping(self) -> list[EarlyStoppingCallback]:
        return [each for each in self.callback_handler.callbacks if isinstance(each, EarlyStoppingCallback)]
