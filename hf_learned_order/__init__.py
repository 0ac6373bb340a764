"""Learned unmasking orders for masked diffusion language models.

    model = attach(AutoModelForMaskedLM.from_pretrained(...), scorer="user/scorer")
    model.generate(**inputs, sampler="learned_order", max_new_tokens=64, max_denoising_steps=8)

The public names load on first use, so that `import hf_learned_order` costs nothing.
"""

from hf_learned_order.common.lazy import lazy

__getattr__, __dir__, __all__ = lazy(  # pyrefly: ignore
    __name__,
    {
        "attach": "interface.attach",
        "detach": "interface.attach",
        "load_model": "interface.loading",
        "custom_generate": "interface.loading",
        "generate_custom": "interface.calls",
        "decode": "decoding.loop",
        "LearnedOrderOutput": "decoding.outputs",
        "Denoiser": "denoisers.denoiser",
        "Family": "denoisers.families",
        "load_denoiser": "denoisers.loading",
        "load_tokenizer": "denoisers.loading",
        "register_family": "denoisers.families",
        "OrderScorer": "orders.scorer",
        "OrderScorerConfig": "orders.configuration",
        "SAMPLERS": "decoding.samplers.table",
        "Sampler": "decoding.samplers.base",
        "Proposal": "decoding.samplers.base",
        "IIDSampler": "decoding.samplers.scheduled",
        "RandomSampler": "decoding.samplers.scheduled",
        "LeftToRightSampler": "decoding.samplers.scheduled",
        "TopProbSampler": "decoding.samplers.scheduled",
        "MarginSampler": "decoding.samplers.scheduled",
        "EntropySampler": "decoding.samplers.scheduled",
        "PositionSampler": "decoding.samplers.scheduled",
        "DilatedSampler": "decoding.samplers.scheduled",
        "RandomSizesSampler": "decoding.samplers.random_sizes",
        "ThresholdSampler": "decoding.samplers.adaptive",
        "FactorSampler": "decoding.samplers.adaptive",
        "DAPDSampler": "decoding.samplers.dapd",
        "FrechetSampler": "decoding.samplers.adaptive",
        "LocalLeapSampler": "decoding.samplers.adaptive",
        "EntropyBoundSampler": "decoding.samplers.adaptive",
        "KLASSSampler": "decoding.samplers.adaptive",
        "LearnedOrderSampler": "decoding.samplers.learned",
        "ReMDMSampler": "decoding.samplers.remasking",
        "WINOSampler": "decoding.samplers.remasking",
        "Predictions": "denoisers.predictions",
        "Step": "denoisers.predictions",
        "OrderELBO": "training.objectives.elbo",
        "CleanPosterior": "orders.posterior",
        "OrderTrainer": "training.trainer",
        "OrderTrainingArguments": "training.arguments",
        "Card": "sharing.cards",
        "push_folder": "sharing.hub",
        "Evaluator": "evaluation.evaluator",
        "compare": "evaluation.comparison",
        "OrderMap": "evaluation.order_maps",
    },
)
