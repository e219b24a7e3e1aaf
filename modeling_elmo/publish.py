"""A finished folder to the Hugging Face Hub: `python -m modeling_elmo.publish FOLDER ME/MY-ELMO [--private]`.

For folders that `train.py`, `modeling_elmo.convert` or a fine-tuning script left. Weights, tokenizer, code, card and
plots go there; checkpoints, caches, logs and predictions stay. `hf auth login`, or HF_TOKEN, gives the token.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of the HTTP library that this release of huggingface_hub uses
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id

from .commands import command_parser, run_command

# Patterns of paths, in which `*` stands for folders too.
# What models are made of; everything else may be somebody's own.
TAKEN = [*("*.py", "*.json", "*.safetensors", "*.txt", "*.md", "*.png", "*.onnx", "*.onnx.data"), "LICENSE*"]
LEFT_OUT = [
    *("checkpoint-*", "*/checkpoint-*", "unfinished-*", "_*", ".*", "*/.*"),
    *("trainer_state.json", "runs/*", "tracker/*"),
    *("*predictions.*", "*null_odds.json"),  # they may quote texts of others
]


# What an earlier version may have left there, and this one may lack: transformers would load it.
REPLACED = [*("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"), "tokenizer.json"]
REPLACED += ["vocab.txt", "char_vocab.json", "word_vocab.json"]
WRITER = "take one with the role 'write', or a name of your own"


class PublishError(ValueError):
    """What cannot be published; the message names it and the way out."""


def check_destination(repo_id: str) -> str:
    """See to it, before long work, that a repository of this name can be uploaded to, as far as the token tells.

    Returns:
        The whole id, with the user's name in front if `repo_id` has none.

    Raises:
        PublishError: no valid id, no token, one that is not valid or may not write there, or no connection.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise PublishError(f"{repo_id!r} is no name for a model on the Hub; write it as user/name: {error}") from error
    if get_token() is None:
        raise PublishError("there is no token for the Hub: run `hf auth login`, or set HF_TOKEN")
    api = HfApi(library_name="modeling_elmo")
    try:
        user = api.whoami()
    except (HTTPError, OSError) as error:
        raise PublishError(explain(error, repo_id)) from error
    whole_id = repo_id if "/" in repo_id else f"{user['name']}/{repo_id}"
    role = user.get("auth", {}).get("accessToken", {}).get("role")  # of finer ones only an upload can tell
    places = [user["name"], *(organization["name"] for organization in user.get("orgs", []))]
    if role == "read" or (role == "write" and whole_id.split("/")[0] not in places):
        raise PublishError(f"this token may not write to {whole_id}: {WRITER}")
    return whole_id


def publish(
    folder: str | Path,
    repo_id: str,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
) -> str:
    """Upload a finished folder, in place of an earlier version; the repository is made if there is none.

    Args:
        repo_id: as `check_destination` gives it.
        private: whether a new repository is private; `None`: as the owner's settings say.
        token: another than that of `hf auth login` or HF_TOKEN.
        revision: another branch than "main".

    Returns:
        The address of the model's page.

    Raises:
        PublishError: a folder without a model, or what keeps it from being uploaded. The folder stays as it is.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise PublishError(f"{folder} is no finished folder: it needs a config.json and weights in *.safetensors")
    api = HfApi(library_name="modeling_elmo", token=token)
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=list(TAKEN),
            ignore_patterns=list(LEFT_OUT),
            delete_patterns=list(REPLACED),
            revision=revision,
            commit_message=f"Upload {folder.name}",
        )
    except (HTTPError, OSError, ValueError, RuntimeError) as error:  # the last two: of single files
        way_out = f"python -m modeling_elmo.publish {folder} {repo_id}{' --private' * bool(private)} tries again"
        raise PublishError(f"{explain(error, repo_id)}; {folder} is complete: {way_out}") from error
    return str(url)


def explain(error: Exception, repo_id: str = "that repository") -> str:
    """One sentence of what went wrong with the Hub, or the error's own."""
    cause: BaseException = error
    while not isinstance(cause, (HTTPError, OSError)) and cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it to upload"
    if not isinstance(cause, HfHubHTTPError):
        if isinstance(cause, (HTTPError, ConnectionError)):
            return f"no connection to {HfApi().endpoint} ({cause})"
        return str(error)
    status, told = cause.response.status_code, cause.server_message or str(cause).strip().splitlines()[-1]
    if status == 401:
        return "the Hub does not know this token: run `hf auth login`, or correct HF_TOKEN"
    if status == 403:
        return f"this token may not write to {repo_id} ({told}): {WRITER}"
    return f"the Hub answered {status}: {told}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code is that of `run_command`."""
    parser = command_parser("publish", __doc__)
    parser.add_argument("folder", help="a finished folder")
    parser.add_argument("repo_id", help="where it goes on the Hub, as in me/my-elmo")
    parser.add_argument("--private", action="store_true", default=None, help="a new repository is private")
    arguments = parser.parse_args(argv)

    def run():
        repo_id = check_destination(arguments.repo_id)
        print(f"published {publish(arguments.folder, repo_id, arguments.private)}")

    return run_command(run, PublishError)


if __name__ == "__main__":
    sys.exit(main())
