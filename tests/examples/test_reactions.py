"""`examples/reactions.py`: published weights that nobody here trained, where pip can get them."""

import sys

import pytest
import reactions
import torch

from hf_learned_order.denoisers.loading import load_denoiser, load_tokenizer
from hf_learned_order.evaluation.results import load_results
from hf_learned_order.interface.attach import attach

ESTERS = [f"{'C' * n}O.CC(=O)Cl>>CC(=O)O{'C' * n}" for n in range(1, 9)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The denoiser in a folder of ours."""
    folder = tmp_path_factory.mktemp("reactions")
    try:
        reactions.make_denoiser(folder / "denoiser")
    except OSError as error:
        pytest.skip(str(error))
    return folder


def test_tokens_are_atoms():
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "C", "Cl", "[Na+]", ">>", ".", "1", "c"]
    tokenizer = reactions.smiles_tokenizer(tokens)
    ids = tokenizer("CCl.[Na+]>>c1")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", "C", "Cl", ".", "[Na+]", ">>", "c", "1", "[SEP]"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "CCl.[Na+]>>c1"
    assert tokenizer("C[MASK]C")["input_ids"][2] == tokenizer.mask_token_id


def test_weights_that_cannot_be_had(tmp_path, monkeypatch):
    monkeypatch.setattr(reactions, "PACKAGE", "rxnmapper==0.0.0.0")
    with pytest.raises(OSError, match=r"pip could not download rxnmapper==0\.0\.0\.0: "):
        reactions.fetch(tmp_path)


def test_published_weights_fill_in_a_reaction(folder):
    """The other half of a symbol that comes in pairs is no matter of taste."""
    tokenizer = load_tokenizer(folder / "denoiser")
    model = attach(load_denoiser(folder / "denoiser"), tokenizer=tokenizer)
    reaction = "CC(=O)Cl.OCc1ccccc1>>CC(=O)OCc1ccccc1"
    hidden = "CC(=O[MASK]Cl.OCc1ccccc[MASK]>>CC[MASK]=O)OCc[MASK]ccccc1"
    with torch.no_grad():
        filled = model.generate(**tokenizer(hidden, return_tensors="pt"), sampler="top_prob", infill=True)
    assert tokenizer.decode(filled[0], skip_special_tokens=True) == reaction


@pytest.mark.slow  # a training, an evaluation
def test_the_whole_script(folder, monkeypatch, capsys):
    (folder / "rows.csv").write_text("\n".join(["rxn", *ESTERS, *ESTERS[::-1], *ESTERS]))
    command = ["reactions.py", "--reactions", str(folder / "rows.csv"), "--output_dir", str(folder)]
    command += ["--text_column", "rxn"]
    small = ["--max_steps", "1", "--batch_size", "4", "--limit", "2", "--nfe", "2", "--canvas_length", "48"]
    monkeypatch.setattr(sys, "argv", [*command, *small, "--samplers", "top_prob", "learned_order"])
    assert reactions.main() == 0
    rows = load_results(folder / "results" / "results.json")
    assert [row.sampler for row in rows] == ["top_prob", "learned_order"]
    assert all(0 <= row.accuracy <= 1 and row.bound < 0 for row in rows)
    assert "learned ahead" in capsys.readouterr().out


def test_what_the_script_asks_for(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["reactions.py", "--output_dir", str(folder)])
    with pytest.raises(SystemExit):
        reactions.main()
    assert "--reactions must be given unless --only_denoiser is" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["reactions.py", "--output_dir", str(folder), "--only_denoiser"])
    assert reactions.main() == 0
