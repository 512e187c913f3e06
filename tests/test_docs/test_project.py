"""What a project has beside its code."""

import re
import tomllib

import pytest
import yaml

from distill import __version__
from distill.__main__ import VERBS, main


def test_the_readme_is_short_and_begins_with_the_fit_command(root):
    text = (root / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    commands = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    assert commands[0].rstrip().endswith("python -m distill fit")
    tests = next(line for line in text.splitlines() if "python -m pytest" in line)  # what .ci/run takes
    assert tests.startswith("python3.11 -m venv") and '".[test]"' in tests
    assert all(f"| `{verb}` |" in text for verb in VERBS)


def test_the_workflow_runs_what_the_ci_runs(root):
    workflow = yaml.safe_load((root / ".github/workflows/test.yml").read_text())
    assert {"run": ".ci/run"} in workflow["jobs"]["test"]["steps"]
    assert "python -m pytest" in (root / ".ci/run").read_text()


def test_the_citation_names_this_software_and_the_paper(root):
    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    (paper,) = citation["references"]
    assert paper["authors"][0]["family-names"] == "Hedlin" and paper["year"] == 2023


@pytest.mark.parametrize("extra", ["slurm", "lora", "tensorboard", "wandb", "mlflow", "docs", "test"])
def test_what_is_optional_is_an_extra(root, extra):
    assert tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"][extra]


def test_tests_install_what_builds_the_site(root):
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(re.fullmatch(r"distill\[.*\bdocs\b.*\]", requirement) for requirement in extras["test"])


def test_hooks_before_a_commit_run_the_tools_of_the_suite(root):
    config = yaml.safe_load((root / ".pre-commit-config.yaml").read_text())
    entries = [hook["entry"].split()[0] for repository in config["repos"] for hook in repository["hooks"]]
    assert entries == ["ruff", "ruff", "mypy"]


def test_issue_templates_ask_for_what_is_needed(root):
    bug = yaml.safe_load((root / ".github/ISSUE_TEMPLATE/bug.yml").read_text())
    asked = {field["id"] for field in bug["body"] if field.get("validations", {}).get("required")}
    assert asked == {"command", "result", "expected", "doctor"}


def test_package_command_citation_and_changelog_name_one_version(root, capsys):
    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    headings = re.findall(r"^## (.+)$", (root / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert main(["--version"]) == 0 and capsys.readouterr().out.strip() == __version__
    assert citation["version"] == __version__
    released, development, _ = __version__.partition(".dev")
    assert headings[0] == (f"[Unreleased] {released}" if development else released)
    assert headings[1:] and all(re.fullmatch(r"\d+\.\d+\.\d+", heading) for heading in headings[1:])
    assert released not in headings[1:]
