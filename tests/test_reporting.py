"""The curve of a run: what is read from the log, the picture and the text."""

import json
import sys

import pytest

from modeling_elmo.reporting import main, plot_curve, read_log, terminal_curve, tick_values


def write_log(path, steps=200, start=8.0, fall=0.02):
    """A log whose loss falls by `fall` a step, evaluated every fifth line."""
    lines = []
    for step in range(10, steps + 1, 10):
        loss = start - fall * step
        position = {"step": step, "epoch": step / 100, "words": step * 1280}
        perplexity = 2.718281828459045**loss
        lines.append({**position, "loss": loss, "forward_perplexity": perplexity, "backward_perplexity": perplexity})
        if step % 50 == 0:
            names = ("eval_perplexity", "eval_forward_perplexity", "eval_backward_perplexity")
            lines.append({**position, "eval_loss": loss, **dict.fromkeys(names, perplexity)})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def log(tmp_path):
    return write_log(tmp_path / "log.jsonl")


def test_log_is_split_into_training_and_evaluation(log):
    training, evaluation = read_log(log)
    assert [line["step"] for line in training] == list(range(10, 201, 10))
    assert [line["step"] for line in evaluation] == [50, 100, 150, 200]


def test_line_that_was_cut_off_is_left_out(log):
    text = log.read_text()
    log.write_text(text[: len(text) - 30])
    training, evaluation = read_log(log)
    assert (len(training), len(evaluation)) == (20, 3)


def test_terminal_curve_falls_and_fits(log):
    text = terminal_curve(log, width=60, height=14)
    lines = text.splitlines()
    assert len(lines) == 14
    assert max(map(len, lines)) <= 60
    assert lines[-1].split() == ["10", "step", "200"]
    drawn = [line[8:] for line in lines[1:-2]]
    # A straight fall of the loss is a straight line on the log axis: from the top left to the bottom right.
    assert drawn[0].strip() and drawn[0].startswith(drawn[0].strip())
    ends = [len(line) for line in drawn if line.strip()]
    assert ends == sorted(ends) and ends[-1] == 52
    assert "".join(drawn).count("o") == 4
    ticks = [float(line.split()[0]) for line in lines[1:-2] if "┤" in line]
    assert ticks == sorted(ticks, reverse=True) and {2000.0, 1000.0, 500.0, 100.0} <= set(ticks)


def dots(curve: str) -> set[tuple[int, int]]:
    """The dots that are drawn, (column, row) from the top left."""
    places = {1: (0, 0), 2: (0, 1), 4: (0, 2), 8: (1, 0), 16: (1, 1), 32: (1, 2), 64: (0, 3), 128: (1, 3)}
    cells = [line[8:] for line in curve.splitlines()[1:-2]]
    return {
        (2 * column + x, 4 * row + y)
        for row, line in enumerate(cells)
        for column, cell in enumerate(line)
        for bit, (x, y) in places.items()
        if cell != " " and ord(cell) - 0x2800 & bit
    }


def test_terminal_curve_is_a_line_from_point_to_point(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"step": step, "loss": 5 - step / 4}) + "\n" for step in (0, 8, 16)))
    curve = terminal_curve(log, 18, 8)  # 10 columns and 5 rows, of 2 x 4 dots each
    assert dots(curve) == {(column, column) for column in range(20)} and chr(0x2800) not in curve
    assert dots(terminal_curve(log, 1, 1)) <= {(column, row) for column in range(20) for row in range(8)}
    log.write_text(log.read_text().splitlines()[0])
    assert dots(terminal_curve(log, 18, 8)) == {(0, 0)}
    log.write_text("".join(json.dumps({"step": step, "loss": 5}) + "\n" for step in (0, 8)))
    assert dots(terminal_curve(log, 18, 8)) == {(column, 0) for column in range(20)}


def test_terminal_curve_of_a_constant_loss_and_of_one_line(tmp_path):
    log = write_log(tmp_path / "flat.jsonl", steps=30, fall=0.0)
    assert "2981" in terminal_curve(log)
    log.write_text(log.read_text().splitlines()[0])
    assert len(terminal_curve(log).splitlines()) == 16


def test_nothing_logged(tmp_path):
    empty = tmp_path / "log.jsonl"
    assert terminal_curve(empty) == "nothing logged yet"
    empty.touch()
    assert terminal_curve(empty) == "nothing logged yet"
    assert read_log(empty) == ([], [])


@pytest.mark.parametrize(
    ("low", "high", "values"),
    [
        (40, 1100, [50, 100, 200, 500, 1000]),
        (20, 100, [20, 50, 100]),
        (1, 6, [1, 2, 5]),
        (301.26, 350.04, [301.3, 350.0]),
    ],
)
def test_tick_values(low, high, values):
    assert tick_values(low, high) == values


def test_picture_shows_both_directions_on_a_log_axis(log, tmp_path, monkeypatch):
    figures = []
    matplotlib_figure = pytest.importorskip("matplotlib.figure")
    original = matplotlib_figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib_figure.Figure,
        "savefig",
        lambda self, *args, **kwargs: (figures.append(self), original(self, *args, **kwargs)),
    )
    plot_curve(log, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    axes = figures[0].axes[0]
    assert axes.get_yscale() == "log"
    assert "words" in axes.get_xlabel() and "perplexity" in axes.get_ylabel()
    labels = [line.get_label() for line in axes.lines]
    assert [label.split(" (")[0] for label in labels] == [
        "forward, training",
        "forward, validation",
        "backward, training",
        "backward, validation",
    ]
    last = read_log(log)[1][-1]
    assert f"(last: {last['eval_forward_perplexity']:.1f})" in labels[1]
    assert axes.lines[1].get_xdata().tolist() == [64000, 128000, 192000, 256000]


def test_picture_of_an_empty_log(tmp_path):
    pytest.importorskip("matplotlib")
    plot_curve(tmp_path / "log.jsonl", tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 0


def test_without_matplotlib_the_way_out_is_named(log, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"modeling-elmo\[plot\]"):
        plot_curve(log, tmp_path / "curve.png")


def test_command(log, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert main([str(log), str(tmp_path / "curve.png")]) == 0
    assert capsys.readouterr().out.strip() == terminal_curve(log).strip()
    assert (tmp_path / "curve.png").is_file()


@pytest.mark.parametrize("text", [None, '{"step": 1}', "5", b"\xff"])
def test_what_is_no_log_is_told(text, tmp_path, capsys):
    file = tmp_path / "log.jsonl"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert main([str(file)]) == 2
    told = capsys.readouterr()
    reason = f"no file {file}: give log.jsonl" if text is None else f"{file} is not the log of a run"
    assert told.out == "" and told.err.startswith(f"error: {reason}") and told.err.count("\n") == 1
