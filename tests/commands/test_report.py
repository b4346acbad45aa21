"""`dsonas report`, and the report that a run leaves behind."""

import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def test_a_run_leaves_a_report(finished):
    text = (finished / "report.html").read_text()
    for words in ("What was found", "Scaling factors", "Confusion matrix", "on digits with"):
        assert words in text
    assert " of 50 images" in text
    assert "it was" not in text.partition("How good it is")[2].partition("Confusion")[0]


def test_one_report_of_two_runs(dsonas, finished, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(finished, other)
    (other / "report.html").unlink()
    ended = dsonas("report", other, finished, "--no_images")
    assert ended.code == 0
    assert ended.out.strip() == str(other / "report.html")
    text = (other / "report.html").read_text()
    assert "2 runs compared" in text
    assert "Confusion matrix" not in text
    ended = dsonas("report", finished, "--out", tmp_path / "new" / "page.html")
    assert ended.code == 0
    assert (tmp_path / "new" / "page.html").exists()


def test_bad_input_is_one_line(dsonas, tmp_path):
    ended = dsonas("report", tmp_path / "nothing")
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert "must be the folder of a run" in ended.err
    assert dsonas("report").code == 2


def test_a_search_alone_and_a_training_alone_leave_reports(dsonas, tiny, tmp_path):
    searched, trained = tmp_path / "searched", tmp_path / "trained"
    assert dsonas("search", *tiny, "--out", searched).code == 0
    assert "found and not trained yet" in (searched / "report.html").read_text()
    file = searched / "architecture.json"
    assert dsonas("train", *tiny, "--architecture", file, "--out", trained).code == 0
    text = (trained / "report.html").read_text()
    assert "Its architecture came from a file" in text
    assert "dsonas train --config config.yaml" in text


@pytest.mark.parametrize("broken", ["jinja2", "templates"])
def test_a_run_does_not_fail_with_its_report(dsonas, tiny, tmp_path, monkeypatch, broken):
    if broken == "jinja2":
        monkeypatch.setitem(sys.modules, "jinja2", None)
    else:
        (tmp_path / "run" / "report.html").mkdir(parents=True)
        settings = dsonas("run", *tiny, "--print_config").out
        (tmp_path / "run" / "config.yaml").write_text(settings)  # so that it is a run's
    ended = dsonas("run", *tiny, "--out", tmp_path / "run")
    assert ended.code == 0
    assert (tmp_path / "run" / "metrics.json").exists()
    said = [line for line in ended.out.splitlines() if line.startswith("no report: ")]
    assert len(said) == 1
    assert broken != "jinja2" or 'pip install "dsonas[report]"' in said[0]


def test_help_fits_a_screen(dsonas):
    ended = dsonas("report", "--help")
    assert ended.code == 0
    assert len(ended.out.splitlines()) <= 24


@pytest.mark.parametrize("command", ["report", "plan", "run"])
def test_the_command_line_starts_without_slow_libraries(command):
    code = f"import sys; from dsonas.commands.cli import main; main([{command!r}, '--help']); "
    code += "slow = ('matplotlib', 'jinja2', 'torchvision', 'torch._dynamo'); "
    code += "sys.exit(', '.join(name for name in slow if name in sys.modules) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
