"""Flags and recipes."""

from pathlib import Path

import pytest

from modeling_elmo.arguments import ArgumentsError, PretrainingArguments, parse_arguments

NEEDED = ["--train_file", "a.txt", "--output_dir", "out"]


def parse(*argv: str) -> PretrainingArguments:
    return parse_arguments(PretrainingArguments, argv)


def recipe(tmp_path: Path, text: str) -> str:
    (tmp_path / "recipe.yaml").write_text(text)
    return str(tmp_path / "recipe.yaml")


def test_defaults_are_the_recipe_of_the_original():
    args = parse(*NEEDED)
    assert (args.optim, args.learning_rate, args.initial_accumulator_value) == ("adagrad", 0.2, 1.0)
    assert (args.unroll_steps, args.max_grad_norm, args.scale_loss_by_unroll_steps) == (20, 10.0, True)
    assert (args.lr_scheduler_type, args.num_train_epochs, args.per_device_train_batch_size) == ("constant", 10, 128)


def test_flags_replace_the_recipe_and_the_recipe_the_defaults(tmp_path):
    path = recipe(tmp_path, "learning_rate: 1e-3\nseed: 7\npre_tokenized: true\ntrain_file: [x.txt, y.txt]\n")
    args = parse(path, "--output_dir", "out", "--seed", "8")
    assert (args.learning_rate, args.seed, args.pre_tokenized) == (0.001, 8, True)
    assert args.train_file == ["x.txt", "y.txt"]
    assert args.unroll_steps == 20
    assert args.changed()["seed"] == 8 and "unroll_steps" not in args.changed()


def test_passes_that_are_asked_for_replace_the_steps_of_a_recipe(tmp_path):
    path = recipe(tmp_path, "max_steps: 9000\n")
    for flags in (["--num_train_epochs", "3"], ["--num-train-epochs=3"]):
        args = parse(path, *NEEDED, *flags)
        assert (args.num_train_epochs, args.max_steps) == (3, -1)
        assert parse(path, *NEEDED, *flags, "--max_steps", "5").max_steps == 5


@pytest.mark.parametrize(("eval_steps", "save_steps"), [(2, 3), (0, 2), (2, 0)])
def test_the_best_checkpoint_must_have_been_judged(eval_steps, save_steps):
    steps = ["--eval_steps", str(eval_steps), "--save_steps", str(save_steps)]
    with pytest.raises(ArgumentsError, match=f"one a multiple of the other.* they are {eval_steps} and {save_steps}"):
        parse(*NEEDED, *steps, "--load_best_model_at_end", "true")


def test_a_recipe_may_hold_what_is_required(tmp_path):
    path = recipe(tmp_path, "output_dir: out\ntrain_file: [x.txt]\n")
    assert parse(path).output_dir == "out"


def test_null_in_a_recipe_is_the_default_where_that_is_none(tmp_path):
    names = ("mixed_precision", "language", "vocab_size", "hub_private_repo")
    args = parse(recipe(tmp_path, "".join(f"{name}: null\n" for name in names)), *NEEDED)
    assert [getattr(args, name) for name in names] == [None] * 4


def test_a_recipe_stands_in_front(tmp_path):
    path = recipe(tmp_path, "max_steps: 3\n")
    assert parse(path, *NEEDED).max_steps == 3
    for argv in ([*NEEDED, path], ["--output_dir", "out", path, "--train_file", "a.txt"]):
        with pytest.raises(ArgumentsError, match=r"recipe.yaml' is the value of no flag; a recipe comes before"):
            parse(*argv)


def test_recipes_may_be_json(tmp_path):
    (tmp_path / "r.json").write_text('{"max_steps": 3}')
    assert parse(str(tmp_path / "r.json"), *NEEDED).max_steps == 3


@pytest.mark.parametrize("file", sorted(Path(__file__).parents[1].glob("configs/recipes/*.yaml")), ids=lambda p: p.stem)
def test_the_recipes_of_the_project_can_be_read(file):
    args = parse(str(file), *NEEDED)
    assert args.config_name and args.language == ("en" if file.stem == "demo" else None)
    if args.eval_steps and args.save_steps:
        assert parse(str(file), *NEEDED, "--load_best_model_at_end", "true").load_best_model_at_end


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nmax_steps: 2\nseed: 3\n", "gives 'seed' more than once"),
        ("learning_rat: 1\n", "unknown key 'learning_rat' .* did you mean 'learning_rate'"),
        ("qqqqq: 1\n", "unknown key 'qqqqq' .* --help"),
        ("learning_rate: fast\n", "learning_rate .* must be a number"),
        ("seed: 1.5\n", "seed .* must be a number"),
        ("seed: true\n", "seed .* must be a number"),
        ("pre_tokenized: 3\n", "pre_tokenized .* true or false"),
        ("train_file: x.txt\n", "train_file .* must be a list"),
        ("optim: [a]\n", "optim .* must be a single value"),
        ("optim: sgd\n", "optim .* must be one of adagrad, adamw, muon"),
        ("language: no\n", "language .* must be text, which YAML reads as False: put it in quotes"),
        ("mixed_precision: no\n", "mixed_precision .* put it in quotes"),
        ("train_file: [2024]\n", "each of train_file .* put it in quotes"),
        ("seed: 2020-01-01\n", "seed .* must be a number"),
        ("max_steps: .inf\n", "max_steps .* must be a number"),
        ("learning_rate: .nan\n", "learning_rate .* must be a number"),
        ("seed: null\n", "seed .* must be a number"),
        ("push_to_hub: null\n", "push_to_hub .* true or false"),
        ("- a\n- b\n", "must hold lines of the form"),
        ("a: [1\n", "not valid YAML"),
        ("a: " + 5000 * "[", "not valid YAML"),
        ("license: 2024-13-45\n", "not valid YAML"),
        ("seed: !!int x\n", "not valid YAML"),
        ("streaming: !!bool x\n", "not valid YAML"),
        (f"seed: 1{400 * '0'}\n", "seed .* must be a number"),
        ('license: "a\\0b"\n', "license .* must be text without NUL"),
    ],
)
def test_mistakes_in_a_recipe_are_named(tmp_path, text, message):
    with pytest.raises(ArgumentsError, match=message):
        parse(recipe(tmp_path, text), *NEEDED)


def test_lists_of_lists_are_not_written_out(tmp_path):
    """Ten million words by references to references."""
    text = "".join(f", &l{level} [{', '.join(10 * [f'*l{level - 1}'])}]" for level in range(1, 7))
    with pytest.raises(ArgumentsError, match="must be a list") as error:
        parse(recipe(tmp_path, f"train_file: {{a: [&l0 {10 * ['x']}{text}]}}\n"), *NEEDED)
    assert len(str(error.value)) < 2**20


def test_a_recipe_that_is_not_there_is_named():
    with pytest.raises(ArgumentsError, match=r"cannot read the recipe 'nowhere\.yaml'"):
        parse("nowhere.yaml", *NEEDED)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--unroll_steps", "0"], "unroll_steps must be 1 or more"),
        (["--learning_rate", "0"], "learning_rate must be greater than 0"),
        (["--learning_rate", "nan"], "learning_rate must be greater than 0"),
        (["--max_steps", "0"], "max_steps"),
        (["--seed", "-1"], "seed must be 0 or more"),
        (["--dataset_name", "x"], "either --train_file or --dataset_name"),
    ],
)
def test_impossible_values_are_named(flags, message):
    with pytest.raises(ArgumentsError, match=message):
        parse(*NEEDED, *flags)


def test_neither_file_nor_dataset_is_named():
    with pytest.raises(ArgumentsError, match="what to train on"):
        parse("--output_dir", "out")


def test_no_tracker_has_the_name_that_trainer_gives_it():
    assert parse(*NEEDED, "--report_to", "none") == parse(*NEEDED)


def test_an_unknown_flag_is_named_with_the_one_that_was_meant():
    with pytest.raises(ArgumentsError, match="unknown argument '--learn_rate': did you mean 'learning_rate'"):
        parse(*NEEDED, "--learn_rate", "1")


@pytest.mark.parametrize("flags", [["--optim", "sgd"], ["--seed", "x"]])
def test_argparse_refuses_with_exit_code_2(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(*NEEDED, *flags)
    assert stop.value.code == 2
    assert flags[0] in capsys.readouterr().err


def test_help_shows_commands_as_they_stand_and_no_empty_defaults(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(PretrainingArguments, ["--help"], "Train:\n\n    python train.py a\n    python train.py b\n")
    told = capsys.readouterr().out
    assert "Train:\n\n    python train.py a\n    python train.py b\n" in told
    assert "not: multiply the loss" in " ".join(told.split())
    assert "(default: 128)" in told and "(default: None)" not in told and "(default: [])" not in told
