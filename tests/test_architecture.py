"""The house: imports point downwards, the pure parts stay pure, the light parts stay light, nothing is unpickled."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "stepalign"
MODULES = {
    ".".join(("stepalign", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(SOURCE.rglob("*.py"))
}

# From the ground up. A module may import its own floor and those below.
FLOORS = (
    ("records", "errors", "outside", "own_code", "hub", "waiting", "events", "stopping", "memory", "domains.math"),
    ("objectives",),
    ("storage", "config"),
    ("feedback",),
    ("models", "critics", "problems", "evaluation"),
    ("domains",),
    ("rollouts",),
    ("training", "token_signal"),
    ("build", "report"),
    ("verbs",),
    ("cli", "__main__"),
)
# Modules that still import something above them. The list only gets shorter.
CLIMBING: set[str] = set()
FLOOR_OF = {part: height for height, floor in enumerate(FLOORS) for part in floor}

PURE = (
    *("objectives", "evaluation.metrics", "feedback.steps", "feedback.critique", "feedback.alignment"),
    *("feedback.statements", "feedback.step_matching", "feedback.findings"),
)
IMPURE_LIBRARIES = {
    *("os", "io", "pathlib", "shutil", "tempfile", "glob", "fcntl", "mmap", "sqlite3", "importlib"),
    *("socket", "ssl", "http", "urllib", "httpx", "httpx2", "requests", "openai", "asyncio", "aiohttp"),
    *("time", "datetime", "random", "secrets", "uuid"),
    *("subprocess", "multiprocessing", "threading", "concurrent", "signal", "logging"),
}


def imports(module: str, *, at_runtime: bool = False) -> Iterator[str]:
    """Dotted names that a module imports, wherever in it; ``from a import b`` gives a and a.b."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    skipped: set[ast.AST] = set()
    if at_runtime:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                skipped |= set(ast.walk(node))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} uses a relative import"
            assert node.module is not None
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from names
            if not names <= MODULES.keys():  # "from package import module" takes the module alone
                yield node.module


def ours(module: str, *, at_runtime: bool = False) -> set[str]:
    return {name for name in imports(module, at_runtime=at_runtime) if name in MODULES and name != module}


def floor(module: str) -> int:
    parts = module.split(".")
    return FLOOR_OF.get(".".join(parts[1:3]), FLOOR_OF[parts[1]]) if len(parts) > 1 else -1


def test_every_part_has_a_floor() -> None:
    assert {name.split(".")[1] for name in MODULES if "." in name} == FLOOR_OF.keys() - {"domains.math"}


def test_the_grading_of_answers_stands_by_itself() -> None:
    """Nothing else of the package: not when parsed, and not in a fresh interpreter that graded with it."""
    whole = [module for module in MODULES if module.startswith("stepalign.domains.math")]
    assert len(whole) > 5
    for module in whole:
        assert all(name.startswith("stepalign.domains.math") for name in ours(module)), module
    done = _fresh(
        "from stepalign.domains.math import grade\n"
        "    for answer, expected in (('0.50', '1/2'), ('x^2-1', '(x+1)(x-1)')):\n"
        "        found = grade(f'so \\\\boxed{{{answer}}}', expected)\n"
        "        assert (found.score, found.verdict, found.answer) == (1.0, 'correct', answer), found\n"
        "    assert grade('so 3', '3').score == 0.0\n"
        "    assert grade('\\\\boxed{\\\\sqrt[3]{8}+x}', '2+x').reason in ('equal expression', 'timed out')\n"
        "    ours = {m for m in sys.modules if m.startswith('stepalign')}\n"
        "    rest = {m for m in ours if not m.startswith('stepalign.domains.math')}\n"
        "    assert rest == {'stepalign', 'stepalign.domains'}, rest"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downwards(module: str) -> None:
    lazily = module == "stepalign"  # the public names: imported for type checkers, loaded on first use
    upwards = {name for name in ours(module, at_runtime=lazily) if floor(name) > floor(module)}
    assert bool(upwards) == (module.removeprefix("stepalign.") in CLIMBING), f"{module} imports {upwards}"


def test_the_list_of_rooms_names_every_module() -> None:
    listed = (SOURCE.parents[1] / "ARCHITECTURE.md").read_text(encoding="utf-8").split("```")[1]
    parts = {part for module in MODULES for part in module.split(".")} - {"stepalign", "__main__", "stepalign_sync"}
    assert parts <= set(re.findall(r"\w+", listed))


def test_no_module_imports_itself_in_a_circle() -> None:
    TopologicalSorter({module: ours(module, at_runtime=True) for module in MODULES}).prepare()


def test_no_file_has_more_than_400_lines_and_no_function_more_than_80() -> None:
    sources = {module: path.read_text(encoding="utf-8") for module, path in MODULES.items()}
    assert not [module for module, source in sources.items() if source.count("\n") > 400]
    functions = [(m, n) for m, s in sources.items() for n in ast.walk(ast.parse(s)) if isinstance(n, ast.FunctionDef)]
    assert not [(m, f.name) for m, f in functions if (f.end_lineno or 0) - f.lineno + 1 > 80]


def below(module: str) -> set[str]:
    """A module with everything of ours that it needs, directly or not. The parents of a module run first."""
    found: set[str] = set()
    pending = [module]
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending += ours(name, at_runtime=True)
            parent = name.rpartition(".")[0]
            pending += [parent] if parent in MODULES else []
    return found


def takes_config(module: str) -> bool:
    """Whether a function of a module is handed the whole configuration."""
    functions = [n for n in ast.walk(ast.parse(MODULES[module].read_text("utf-8"))) if isinstance(n, ast.FunctionDef)]
    arguments = [a for f in functions for a in (*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs)]
    return any(a.annotation is not None and "Config" in ast.unparse(a.annotation).split(" | ") for a in arguments)


def test_the_configuration_ends_at_the_factory_and_enters_few_rooms_before() -> None:
    """Below the factory code takes its own section or plain values; a run folder writes the whole down."""
    rooms = {m for m in MODULES if takes_config(m) and not m.startswith("stepalign.config")}
    assert {m for m in rooms if floor(m) < FLOOR_OF["build"]} == {"stepalign.storage.run_folder"}
    entered = rooms & below("stepalign.verbs.train")
    assert {"stepalign.verbs.train", "stepalign.build.run"} < entered
    assert len(entered) <= 8


@pytest.mark.parametrize("part", PURE)
def test_the_pure_parts_know_no_file_no_network_and_no_clock(part: str) -> None:
    whole = [m for m in MODULES if m == f"stepalign.{part}" or m.startswith(f"stepalign.{part}.")]
    assert whole
    for module in whole:
        for name in {name for m in {module, *ours(module)} for name in imports(m, at_runtime=True)}:
            assert name.split(".")[0] not in IMPURE_LIBRARIES, f"{module} reaches {name}"
        tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
        called = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
        assert not called & {"open", "print", "input", "exec", "eval", "__import__"}


@pytest.mark.slow
def test_nothing_under_the_report_needs_torch() -> None:
    reached = {m for module in MODULES if module.startswith("stepalign.report") for m in below(module)}
    heavy = {(m, name) for m in reached for name in imports(m, at_runtime=True) if name.split(".")[0] in HEAVY}
    assert not heavy


HEAVY = {"torch", "transformers", "tokenizers", "safetensors", "openai", "httpx2", "peft", "math_verify", "sympy"}

_LOADED = """
import sys
try:
    {code}
except SystemExit:
    pass
loaded = set(sys.modules) & {heavy!r}
assert not loaded, loaded
"""

_COMMANDS = (
    *(
        "",
        "demo",
        "train",
        "prepare",
        "compare",
        "evaluate",
        "grade",
        "select",
        "preflight",
        "signal",
        "lab",
        "critique",
        "report",
        "serve",
        "warmstart",
    ),
)


def _fresh(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _LOADED.format(code=code, heavy=HEAVY)], capture_output=True, text=True, check=False
    )


def test_help_of_every_command_loads_nothing_heavy() -> None:
    calls = "; ".join(f"call([{command!r}, '--help'])" for command in _COMMANDS).replace("['', ", "[")
    code = (
        "import contextlib, stepalign.cli\n"
        "    def call(words):\n"
        "        sys.argv = ['stepalign', *words]\n"
        "        with contextlib.suppress(SystemExit): stepalign.cli.main()\n"
        f"    {calls}"
    )
    done = _fresh(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage: ") == len(_COMMANDS)


def test_the_report_loads_nothing_heavy(tmp_path: Path) -> None:
    modules = [m for m in MODULES if m.startswith("stepalign.report")]
    done = _fresh("import " + ", ".join(modules))
    assert done.returncode == 0, done.stderr
    # and the verb, up to its first complaint
    done = _fresh(f"import stepalign.cli; sys.argv = ['stepalign', 'report', {str(tmp_path)!r}]; stepalign.cli.main()")
    assert done.returncode == 0, done.stderr
    assert "not a comparison folder" in done.stderr


# Scripts that run what a model or a data set wrote, each in a process that has given up everything else.
CONFINED = tuple(f"stepalign.domains.python.sandbox.{name}" for name in ("program", "solution", "tests"))


@pytest.mark.parametrize("module", CONFINED)
def test_text_is_run_in_confined_processes_only(module: str) -> None:
    source = MODULES[module].read_text(encoding="utf-8")
    functions = [n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name != "_run"]
    calls = [(f.name, c) for f in functions for c in ast.walk(f) if isinstance(c, ast.Call)]
    runs = [(name, c.lineno) for name, c in calls if ast.unparse(c.func) in ("exec", "_run")]
    confines = [(name, c.lineno) for name, c in calls if "confine" in ast.unparse(c.func)]
    assert len(confines) == 1
    assert {name for name, _ in runs} == {confines[0][0]}
    assert runs
    assert min(runs) > confines[0]
    package = [m for m in MODULES if module in ours(m)]
    assert not package, "it is a script and nothing imports it"


@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_unpickled_and_no_text_is_run(module: str) -> None:
    unsafe = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}
    assert not {name for name in imports(module) if name.split(".")[0] in unsafe}
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            unsafe_calls = {"torch.load", "eval", "exec", "np.load", "numpy.load", "os.system"}
            assert called not in unsafe_calls - ({"exec"} if module in CONFINED else set())
            settings = {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert settings.get("shell", "False") == "False"
            assert settings.get("trust_remote_code", "x") != "True"
            assert settings.get("weights_only", "True") == "True"


@pytest.mark.parametrize("module", [m for m in MODULES if not m.startswith("stepalign.storage.")])
def test_the_storage_alone_appends_renames_and_hashes(module: str) -> None:
    assert "hashlib" not in {found.split(".")[0] for found in imports(module)}
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            owner, _, method = called.rpartition(".")
            assert called not in {"os.replace", "os.rename", "os.fsync"}
            assert method != "rename"
            assert not owner or method != "replace" or len(node.args) != 1, f"{called} renames a file"
            values = [*node.args, *(k.value for k in node.keywords if k.arg == "mode")] if method == "open" else []
            modes = [v.value for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str)]
            assert not any("a" in mode and set(mode) <= set("abt+") for mode in modes), f"{called} appends"
