r"""A model that nobody here trained, on data of your own: chemical reactions, parts of which are hidden.

    python examples/reactions.py --reactions reactions.csv --output_dir runs/reactions

The weights are those of `rxnmapper` (Schwaller et al., Extraction of organic chemistry grammar from unsupervised
learning of chemical reactions, Science Advances 2021; MIT licence): an ALBERT of 0.7 million parameters, trained as a
masked language model on the reactions of US patents. pip fetches the package; nothing of it is imported.
`reactions.csv` has a reaction SMILES (`reactants>>product`) in each row of a column (`--text_column`), such as
`examples/example_rxns.csv` of the repository rxn4chemistry/rxnmapper with its column `rxn`.

Every step is one that any user has: a folder with model and tokenizer (`--only_denoiser` ends there), a scorer trained
by `examples/train.py --task infill`, and `hf-learned-order evaluate --tasks infill`. Measured are recovery, the share
of hidden tokens that come back, and the bound, at like numbers of denoiser calls; and, where RDKit is installed,
validity: the share of filled reactions whose molecules it can read. The table has 95 % intervals of the learned order's
lead, whoever wins.
"""

import argparse
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AlbertForMaskedLM, PreTrainedTokenizerFast

from hf_learned_order.cli.main import main as command_line
from hf_learned_order.tasks.answers import Response
from hf_learned_order.tasks.own.data import load_infill, same_text
from hf_learned_order.tasks.table import Task

PACKAGE = "rxnmapper==0.4.3"
WEIGHTS = "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k"
# atoms in brackets, atoms, bonds, rings: one token each (the pattern of the package's tokenizer)
TOKENS = r"\[[^\]]+]|Br|Cl|N|O|S|P|F|I|B|C|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|/|:|~|@|\?|>>|>|\*|\$|%[0-9]{2}|[0-9]"
HERE = Path(__file__).parent


def valid(response: Response) -> float:
    """1 where RDKit can read the reactants and the product of a reaction, else 0."""
    from rdkit import Chem, RDLogger

    RDLogger.DisableLog("rdApp.*")  # it says of each what it cannot read
    sides = response.text.split(">>")
    return float(len(sides) == 2 and all(side and Chem.MolFromSmiles(side) is not None for side in sides))


VALID = Task(load=load_infill, is_right=same_text, score=valid, canvas_length=160)


def fetch(folder: Path) -> Path:
    """The folder of the weights, from the package; nothing that it needs is installed.

    Raises:
        OSError: pip cannot get it.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--retries", "1", "--timeout", "15"]
    command += ["--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheel = next(folder.glob("rxnmapper-*.whl"), None)
    if wheel is None:
        raise OSError(f"pip could not download {PACKAGE}: {' '.join(done.stderr.split())[-300:]}")
    with zipfile.ZipFile(wheel) as package:
        package.extractall(folder, [name for name in package.namelist() if name.startswith(WEIGHTS)])
    return folder / WEIGHTS


def smiles_tokenizer(vocabulary: list[str]) -> PreTrainedTokenizerFast:
    """One token an atom, a bond, a bracket or a digit; `[CLS]` before a reaction and `[SEP]` behind it."""
    ids = {token: number for number, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(TOKENS), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, ids[token]) for token in ("[CLS]", "[SEP]")]
    )
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **names)


def make_denoiser(output: Path) -> None:
    """The model and its tokenizer, as `load_denoiser` and `load_tokenizer` read them."""
    with tempfile.TemporaryDirectory() as folder:
        weights = fetch(Path(folder))
        tokenizer = smiles_tokenizer((weights / "vocab.txt").read_text(encoding="utf-8").splitlines())
        model = AlbertForMaskedLM.from_pretrained(weights)
    model.config.mask_token_id, model.config.pad_token_id = tokenizer.mask_token_id, tokenizer.pad_token_id
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--reactions", nargs="+", help="files of reactions")
    parser.add_argument("--text_column", default="reaction", help="where they are in the files")
    parser.add_argument("--output_dir", default="runs/reactions")
    parser.add_argument("--only_denoiser", action="store_true", help="fetch the weights, and no more")
    parser.add_argument("--canvas_length", default="160", help="tokens of the longest reaction that is used")
    parser.add_argument("--hidden_share", default="0.3")
    parser.add_argument("--max_steps", default="300", help="updates of the scorer")
    parser.add_argument("--batch_size", default="16")
    parser.add_argument("--samplers", nargs="+", default=["top_prob", "margin", "entropy", "factor", "learned_order"])
    parser.add_argument("--nfe", nargs="+", default=["2", "4", "8"])
    parser.add_argument("--max_denoising_steps", default="12", help="budget that the scorer is trained for")
    parser.add_argument("--limit", default="200", help="reactions that are measured")
    parser.add_argument("--tuning_limit", default="60", help="reactions that settings are tuned on")
    options = parser.parse_args()
    output = Path(options.output_dir)
    if not (output / "denoiser" / "config.json").is_file():
        make_denoiser(output / "denoiser")
    if options.only_denoiser:
        return 0
    if options.reactions is None:
        parser.error("--reactions must be given unless --only_denoiser is")
    data = ["--train_file", *options.reactions, "--text_column", options.text_column]
    data += ["--hidden_share", options.hidden_share, "--canvas_length", options.canvas_length]
    scorer = output / "scorer"
    train = [sys.executable, str(HERE / "train.py"), "--model_name_or_path", str(output / "denoiser")]
    train += ["--task", "infill", "--max_steps", options.max_steps, *data]
    train += ["--max_denoising_steps", options.max_denoising_steps]
    train += ["--per_device_train_batch_size", options.batch_size, "--output_dir", str(scorer)]
    subprocess.run(train, check=True)  # goes on from its checkpoint, or does nothing more
    tasks = ["infill", *([f"{__file__}:VALID"] if importlib.util.find_spec("rdkit") else [])]
    return command_line(
        [
            *("evaluate", "--model", str(output / "denoiser"), "--scorer", str(scorer), "--tasks", *tasks, *data),
            *("--samplers", *options.samplers, "--nfe", *options.nfe, "--limit", options.limit),
            *("--tuning_limit", options.tuning_limit, "--budget_shares", "--output_dir", str(output / "results")),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
