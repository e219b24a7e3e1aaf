"""Uploading to the Hub and loading from there, against a stand-in of it on this machine (hub_stand_in.py)."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from elsewhere import run_elsewhere
from finetuning_runs import run_script, save_pretrained
from hub_stand_in import TOKEN, StandIn
from huggingface_hub import ModelCard, constants
from huggingface_hub.errors import HfHubHTTPError
from test_remote_code import REMOTE_FILES
from training_runs import flags, load_script

from modeling_elmo import ElmoForPreTraining, ElmoModel, ElmoTokenizer, convert
from modeling_elmo.publish import PublishError, check_destination, explain
from modeling_elmo.publish import main as publish

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>'")  # of huggingface_hub's uploads

TEXTS = ["It rains .", "It does n't ."]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The stand-in, as the Hub of this process, and a token for it."""
    with StandIn() as server:
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        changed = {"ENDPOINT": server.url, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_DISABLE_XET": True}
        for name, value in {**changed, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": False}.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # made once with the endpoint of that moment
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture
def finished(tmp_path, tiny_config) -> Path:
    """A folder with a model, its tokenizer and its code."""
    return save_pretrained(ElmoForPreTraining(tiny_config), tmp_path / "finished")


CHILD = """
import torch
from transformers import AutoModel, AutoTokenizer

texts, found = sys.argv[2:4], []
for name in sys.argv[4:]:
    repo_id, _, revision = name.partition("@")
    options = {"trust_remote_code": True, "revision": revision or "main"}
    tokenizer, model = (auto.from_pretrained(repo_id, **options) for auto in (AutoTokenizer, AutoModel))
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    found.append(model(**tokenizer(texts, padding=True, return_tensors="pt")).scalar_mix.detach())
torch.save(found, sys.argv[1])
"""


def load_elsewhere(hub: StandIn, tmp_path: Path, *names: str) -> list[torch.Tensor]:
    """ELMo vectors of `TEXTS` from repositories, some "@" a commit, loaded by a process without this package."""
    home = tmp_path / "elsewhere"
    home.mkdir()
    variables = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"}
    run_elsewhere(CHILD, home, home / "found.pt", *TEXTS, *names, **variables)
    return torch.load(home / "found.pt")


def vectors(folder: Path) -> torch.Tensor:
    """The same from a folder, in this process."""
    model, tokenizer = ElmoModel.from_pretrained(folder), ElmoTokenizer.from_pretrained(folder)
    return model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).scalar_mix.detach()


@pytest.mark.slow
def test_full_circle(hub, legacy, finished, dst, tmp_path, capsys):
    """Converted, pushed and loaded by another process; a sharded model; the commit that was pinned; another's code."""
    arguments = [legacy, dst, "--push", "my-elmo", "--private", "--language", "en", "--license", "apache-2.0"]
    assert convert.main([*map(str, arguments)]) == 0
    assert f"pushed {hub.url}/me/my-elmo" in capsys.readouterr().out
    repository = hub.repositories["me/my-elmo"]
    assert repository.private
    assert repository.files == {file.name: file.read_bytes() for file in dst.iterdir()}
    assert set(repository.files) > REMOTE_FILES and repository.lfs_paths == {"model.safetensors"}
    card = ModelCard(repository.files["README.md"].decode())
    assert (card.data.language, card.data.license) == ("en", "apache-2.0")
    assert 'name = "me/my-elmo"' in card.text

    expected, commit = vectors(dst), repository.head
    other = ElmoModel.from_pretrained(dst)
    torch.nn.init.zeros_(other.scalar_mix.gamma)
    other.push_to_hub("me/my-elmo")
    sharded = tmp_path / "sharded"
    ElmoForPreTraining.from_pretrained(finished).save_pretrained(sharded, max_shard_size="4KB")
    ElmoTokenizer.from_pretrained(finished).save_pretrained(sharded)
    weights = {file.name for file in sharded.glob("*.safetensors")}
    assert len(weights) > 2
    assert publish([str(sharded), "me/sharded"]) == 0
    assert hub.repositories["me/sharded"].lfs_paths == weights and not hub.repositories["me/sharded"].private

    borrower = shutil.copytree(dst, tmp_path / "borrower", ignore=shutil.ignore_patterns("*.py"))
    for name in ("config.json", "tokenizer_config.json"):
        told = (borrower / name).read_text()
        for file in REMOTE_FILES:
            told = told.replace(f'"{file[:-2]}', f'"me/sharded--{file[:-2]}')
        (borrower / name).write_text(told)
    assert publish([str(borrower), "me/borrower"]) == 0

    names = (f"me/my-elmo@{commit}", "me/my-elmo", "me/sharded", "me/borrower")
    pinned, newest, from_shards, borrowed = load_elsewhere(hub, tmp_path, *names)
    torch.testing.assert_close(pinned, expected, rtol=0, atol=1e-6)  # threads add up in another order
    torch.testing.assert_close(newest, torch.zeros_like(expected), rtol=0, atol=0)
    torch.testing.assert_close(from_shards, vectors(finished), rtol=0, atol=1e-6)
    torch.testing.assert_close(borrowed, expected, rtol=0, atol=1e-6)


def test_objects_push_themselves(hub, finished):
    model, tokenizer = ElmoForPreTraining.from_pretrained(finished), ElmoTokenizer.from_pretrained(finished)
    model.push_to_hub("me/mine", private=True)
    tokenizer.push_to_hub("me/mine")
    model.save_pretrained(finished)
    tokenizer.save_pretrained(finished)
    files = dict(hub.repositories["me/mine"].files)
    assert ModelCard(files.pop("README.md").decode()).data.library_name == "transformers"
    assert files == {file.name: file.read_bytes() for file in finished.iterdir()} and set(files) > REMOTE_FILES


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_folder_without_weights_or_config_is_no_model(hub, finished, capsys, name):
    (finished / name).unlink()
    assert publish([str(finished), "me/empty"]) == 2
    assert "needs a config.json and weights" in capsys.readouterr().err and "me/empty" not in hub.repositories


def test_what_stays(hub, finished):
    """Checkpoints, caches, logs, pickles and predictions, and what is of no model; models go, folders too."""
    stays = [
        "checkpoint-10/model.safetensors",
        "unfinished-model/config.json",
        "_layer_cache/a/layers.json",
        ".lock",
        ".cache/a.json",
        "x.json.tmp",
    ]
    stays += [
        "optimizer.pt",
        "training_args.bin",
        "log.jsonl",
        "trainer_state.json",
        "runs/a/b.tfevents.1",
        "runs/a/flags.json",
        "tracker/x.json",
    ]
    stays += ["test_predictions.tsv", "nbest_predictions.json", "null_odds.json"]
    stays += [
        "train.csv",
        "secret.env",
        "id_rsa",
        "pytorch_model.bin",
        "sub/checkpoint-3/config.json",
        "sub/.hidden.json",
    ]
    goes = ["curve.png", "summary.txt", "1_Pooling/config.json", "README.md", "LICENSE", "LICENSE.weights"]
    goes += ["model.onnx", "model.onnx.data"]
    before = {file.name for file in finished.iterdir()}
    for name in [*stays, *goes]:
        (finished / name).parent.mkdir(parents=True, exist_ok=True)
        (finished / name).write_text("---\nlibrary_name: transformers\n---\n")
    assert publish([str(finished), "me/clean"]) == 0
    assert set(hub.repositories["me/clean"].files) == before | set(goes)
    (finished / "curve.png").write_text("another")
    assert publish([str(finished), "me/clean"]) == 0  # there already
    assert hub.repositories["me/clean"].files["curve.png"] == b"another"


@pytest.mark.parametrize(
    ("repo_id", "environment", "told"),
    [
        ("me/my/elmo", {}, "'me/my/elmo' is no name for a model on the Hub; write it as user/name"),
        ("me/my-elmo", {"HF_TOKEN": ""}, "no token for the Hub: run `hf auth login`, or set HF_TOKEN"),
        ("me/my-elmo", {"HF_TOKEN": "hf_wrong"}, "does not know this token: run `hf auth login`"),
        ("me/my-elmo", {"ENDPOINT": "http://127.0.0.1:9"}, "no connection to http://127.0.0.1:9"),
        ("me/my-elmo", {"HF_HUB_OFFLINE": True}, "HF_HUB_OFFLINE is set"),
    ],
)
def test_told_before_the_work(hub, legacy, dst, monkeypatch, capsys, repo_id, environment, told):
    for name, value in environment.items():
        if name == "HF_TOKEN":
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.setattr(constants, name, value)
    assert convert.main([str(legacy), str(dst), "--push", repo_id]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and told in error and error.count("\n") == 1
    assert not dst.exists() and not hub.repositories


def test_a_version_takes_the_place_of_another(hub, finished, tmp_path):
    """Nothing is left that transformers would load instead: whole weights, shards, vocabularies."""
    other = save_pretrained(ElmoForPreTraining.from_pretrained(finished), tmp_path / "other")
    ElmoForPreTraining.from_pretrained(finished).save_pretrained(other, max_shard_size="4KB")
    (other / "vocab.txt").write_text("<S>\n</S>\n<UNK>\n")
    for name in ("char_vocab.json", "word_vocab.json"):
        (other / name).write_text("{}")
    (finished / "tokenizer.json").unlink()
    (finished / "note.md").write_text("kept")
    for folder in (finished, other, finished):
        assert publish([str(folder), "me/mine"]) == 0
        files = {file.name for file in folder.iterdir()} | {"note.md"}
        assert set(hub.repositories["me/mine"].files) == files


@pytest.mark.parametrize(
    ("role", "owner", "fits"),
    [("read", "me", False), ("write", "me", True), ("write", "mine", True), ("write", "other", False),
     ("fineGrained", "other", True)],
)  # fmt: skip
def test_tokens_that_may_not_write_are_told_before_the_work(hub, role, owner, fits):
    hub.role = role
    if fits:
        assert check_destination(f"{owner}/x") == f"{owner}/x"
    else:
        with pytest.raises(PublishError, match=f"this token may not write to {owner}/x: take one with the role"):
            check_destination(f"{owner}/x")


def test_told_after_the_work(hub, finished, legacy, dst, monkeypatch, capsys):
    """What only an upload finds out; the folder is whole, and the sentence says how to try again."""
    assert convert.main([str(legacy), str(dst), "--push", "other/my-elmo", "--private"]) == 2
    error = capsys.readouterr().err
    assert "this token may not write to other/my-elmo" in error and 'under the namespace "other"' in error
    assert (
        f"python -m modeling_elmo.publish {dst} other/my-elmo --private tries again" in error and error.count("\n") == 1
    )
    assert (dst / "README.md").is_file()

    hub.broken = "PUT /lfs"
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # between its attempts
    assert publish([str(finished), "me/breaks-off"]) == 2
    error = capsys.readouterr().err
    assert "error: the Hub answered 500: out of order; " in error and "tries again" in error
    assert not hub.repositories["me/breaks-off"].files
    hub.broken = None
    (finished / "README.md").write_text("---\n- no metadata\n---\n")
    assert publish([str(finished), "me/breaks-off"]) == 2
    assert "error: the Hub answered 400: no metadata; " in capsys.readouterr().err
    assert publish([str(finished / "nowhere"), "me/x"]) == 2
    assert "is no finished folder" in capsys.readouterr().err


def test_an_answer_that_says_nothing_is_told_by_its_status():
    """As that of a proxy, whose body is a page."""
    response = SimpleNamespace(status_code=502, headers={}, request=None)
    error = HfHubHTTPError("\nServer error '502 Bad Gateway' for url 'x'\n", response=response)
    assert explain(error) == "the Hub answered 502: Server error '502 Bad Gateway' for url 'x'"


def test_training_pushes(hub, folder, tmp_path, run, capsys):
    more = {"push_to_hub": True, "hub_model_id": "me/mine", "hub_private_repo": True, "license": "mit", "save_steps": 4}
    assert run(*flags(folder, tmp_path / "run", **more)) == 0
    repository = hub.repositories["me/mine"]
    assert repository.private and f"published {hub.url}/me/mine" in capsys.readouterr().out
    assert {"model.safetensors", "tokenizer.json", "README.md", "curve.png", *REMOTE_FILES} <= set(repository.files)
    assert not [name for name in repository.files if name.startswith(("checkpoint", "log", "."))]
    card = repository.files["README.md"].decode()
    assert ModelCard(card).data.license == "mit" and 'name = "me/mine"' in card and "hub_" not in card

    assert run(*flags(folder, tmp_path / "other", push_to_hub=True, hub_model_id="a/b/c")) == 2
    assert "no name for a model" in capsys.readouterr().err and not (tmp_path / "other").exists()


def test_fine_tuning_pushes_its_results_and_no_cache(hub, finished, tmp_path, monkeypatch, capsys):
    rows = [{"sentence": f"{word} day", "label": label} for word, label in [("good", "yes"), ("bad", "no")] * 4]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = {
        "model_name_or_path": finished, "train_file": tmp_path / "data.jsonl",
        "validation_file": tmp_path / "data.jsonl", "output_dir": tmp_path / "out", "num_train_epochs": 1,
        "head": "linear", "push_to_hub": True, "hub_model_id": "me/tuned", "hub_token": TOKEN, "hub_revision": "trial",
    }  # fmt: skip
    monkeypatch.delenv("HF_TOKEN")
    assert run_script(load_script("finetune_glue"), monkeypatch, given) == 0
    assert hub.repositories["me/tuned"].branches == {"trial"}
    assert (tmp_path / "out" / "_layer_cache").is_dir()
    files = hub.repositories["me/tuned"].files
    assert files["model.safetensors"] == (tmp_path / "out" / "model.safetensors").read_bytes()
    assert set(files) > {*REMOTE_FILES, "all_results.json", "layer_weights.json"}
    assert not [name for name in files if "cache/" in name or "checkpoint" in name or "predictions" in name]
    assert files["README.md"] == (tmp_path / "out" / "README.md").read_bytes()
    card = ModelCard(files["README.md"].decode())
    assert "| `feature_dropout` | `0.5` |\n| `head_dropout` | `0.2` |" in card.text  # as in the model, flag or not
    assert "| `feature_layers` | `[0, 1, 2]` |" in card.text and "None" not in card.text
    assert card.data.pipeline_tag == "text-classification" and "from `finished` on data.jsonl by" in card.text

    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    given |= {"output_dir": tmp_path / "other", "hub_model_id": "me/other", "hub_token": None}
    assert run_script(load_script("finetune_glue"), monkeypatch, given) == 2
    assert "--push_to_hub: the Hub does not know this token: run `hf auth login`" in capsys.readouterr().err
