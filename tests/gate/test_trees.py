"""Copies of commits and of the working tree, from real repositories."""

import subprocess

import pytest

from stepbench.errors import StepbenchError
from stepbench.gate import pins
from stepbench.gate.trees import Project
from stepbench.records.verdict import Pin


def git(folder, *arguments):
    who = ("-c", "user.name=Toy", "-c", "user.email=toy@example.org")
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "mine"
    (folder / "sub").mkdir(parents=True)
    git(folder, "init", "-q", "-b", "main")
    (folder / ".gitignore").write_text("*.log\n")
    (folder / "sub/train.py").write_text("first\n")
    (folder / "gone.py").write_text("soon\n")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "first")
    return folder


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_commit_and_the_working_tree_with_its_edits(project):
    (project / "sub/train.py").write_text("edited\n")
    (project / "new file.py").write_text("untracked\n")
    (project / "a.log").write_text("ignored\n")
    (project / "gone.py").unlink()
    before = git(project, "status", "--porcelain")
    at = Project.at(project)
    with at.tree(at.commit("HEAD")) as old, at.tree(None) as new:
        assert files(old.folder) == {".gitignore", "sub/train.py", "gone.py"}
        assert (old.folder / "sub/train.py").read_text() == "first\n"
        assert files(new.folder) == {".gitignore", "sub/train.py", "new file.py"}
        assert (new.folder / "sub/train.py").read_text() == "edited\n"
        assert old.name == f"commit {at.commit('HEAD')[:10]}"
    assert not old.folder.exists()
    assert not new.folder.exists()
    assert git(project, "status", "--porcelain") == before
    assert git(project, "worktree", "list").count("\n") == 0


def test_a_folder_below_is_where_code_is_imported_from(project):
    at = Project.at(project / "sub")
    with at.tree(None) as tree:
        assert files(tree.folder) == {"train.py"}


def test_the_base_is_where_the_branch_left_the_default_one(project):
    at = Project.at(project)
    with pytest.raises(StepbenchError, match="main without edits; name a base"):
        at.merge_base()
    first = at.commit("HEAD")
    git(project, "switch", "-q", "-c", "topic")
    git(project, "commit", "-q", "--allow-empty", "-m", "second")
    assert at.merge_base() == first
    git(project, "branch", "-m", "main", "other")
    with pytest.raises(StepbenchError, match="no default branch"):
        at.merge_base()


def test_mistakes_are_told(project, tmp_path):
    with pytest.raises(StepbenchError, match="'v9' is no commit"):
        Project.at(project).commit("v9")
    with pytest.raises(StepbenchError, match="in no git repository"):
        Project.at(tmp_path)
    with pytest.raises(StepbenchError, match="no folder"):
        Project.at(tmp_path / "nowhere")


def test_a_stepbench_from_before_the_gate_is_refused(project):
    (project / "harness/stepbench/measuring").mkdir(parents=True)
    (project / "harness/stepbench/measuring/worker.py").touch()
    with (
        pytest.raises(
            StepbenchError, match=r"it has no harness.stepbench.measuring.fork_server\.py"
        ),
        Project.at(project).tree(None),
    ):
        pass


def test_todays_file_stands_in_a_copy_of_a_commit_that_lacks_it(project):
    (project / "sub/new").mkdir()
    workload = project / "sub/new/work.py"
    workload.write_text("today\n")
    at = Project.at(project / "sub")
    with at.tree(at.commit("HEAD"), workload) as tree:
        assert files(tree.folder) == {"train.py", "new/work.py"}
        assert (tree.folder / "new/work.py").read_text() == "today\n"
        assert tree.name.endswith("with today's new/work.py")


def test_todays_file_takes_a_link_s_place_and_not_what_it_leads_to(project, tmp_path):
    outside, link = tmp_path / "outside.py", project / "sub/work.py"
    outside.write_text("kept\n")
    link.symlink_to(outside)
    git(project, "add", "-A")
    git(project, "commit", "-q", "-m", "a link")
    link.unlink()
    link.write_text("today\n")
    at = Project.at(project / "sub")
    with at.tree(at.commit("HEAD"), link) as tree:
        assert (tree.folder / "work.py").read_text() == "today\n"
    assert outside.read_text() == "kept\n"


def test_a_workload_file_that_cannot_stand_there_is_told(project):
    at = Project.at(project / "sub")

    def told(file):
        with pytest.raises(StepbenchError) as error, at.tree(at.commit("HEAD"), file):
            pass
        return str(error.value)

    assert "must lie in" in told(project / "gone.py")
    assert "is no file" in told(project / "sub/nowhere.py")
    (project / "sub/train").mkdir()
    (project / "sub/train/__init__.py").touch()
    git(project, "add", "-A")
    git(project, "commit", "-q", "-m", "a package in its place")
    assert "has a folder train in train.py's place" in told(project / "sub/train.py")


PYPROJECT = """
[project]
dependencies = ["numpy>=2", "Foo.Bar==1; python_version > '3'"]
[project.optional-dependencies]
gpu = ["triton==3.4"]
[dependency-groups]
dev = ["pytest", {include-group = "gpu"}]
"""


def test_what_each_tree_asks_for_is_held_side_by_side(project):
    (project / "requirements-dev.txt").write_text(
        "-r other.txt\n# torch==9\ntorch==2.12.0 --hash=sha256:1 \\\n  --hash=sha256:2  # why\n"
        "lib @ https://example.org/lib.whl\n\nnumpy\n"
    )
    (project / "sub/pyproject.toml").write_text(PYPROJECT)
    at = Project.at(project / "sub")
    with at.tree(None) as old:
        assert old.pins == {
            ("requirements-dev.txt", "torch"): "==2.12.0",
            ("requirements-dev.txt", "lib"): "https://example.org/lib.whl",
            ("requirements-dev.txt", "numpy"): "any version",
            ("pyproject.toml", "numpy"): ">=2",
            ("pyproject.toml", "foo-bar"): '==1 where python_version > "3"',
            ("pyproject.toml [gpu]", "triton"): "==3.4",
            ("pyproject.toml [dev]", "pytest"): "any version",
        }
    (project / "requirements-dev.txt").write_text("torch==2.13.0\nnumpy\n")
    with at.tree(None) as new:
        assert pins.changed(old.pins, new.pins) == (
            Pin(
                name="lib",
                file="requirements-dev.txt",
                old="https://example.org/lib.whl",
                new=None,
            ),
            Pin(name="torch", file="requirements-dev.txt", old="==2.12.0", new="==2.13.0"),
        )
