"""Copies of commits and of the working tree, from real repositories."""

import subprocess

import pytest

from harness.core import StepbenchError
from harness.judging.trees import Project


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
    (project / "harness/measuring").mkdir(parents=True)
    (project / "harness/measuring/worker.py").touch()
    with (
        pytest.raises(StepbenchError, match="it is from before the gate"),
        Project.at(project).tree(None),
    ):
        pass
