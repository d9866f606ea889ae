"""The arrows of the design, read from the imports: a module imports only what stands below it, lazily or not."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("launch", "sft", "strict_settings", "node_board")

LAYERS = {
    "node_board": ["__init__", "standard_output"],
    "strict_settings": ["problems scalars source env_file", "schema yaml_file", "command_line description", "__init__"],
    # The design's order, with one difference: the engine is handed a model and does not import `model`.
    "sft": [
        "__init__ errors allocator core_binding event_file model_list process_end",
        "heartbeat faults pace meeting env_file",
        "deepspeed_config lora_args setting_files",
        "setting_rules",
        "config",
        "settings_page",
        "arguments migration",
        "strict_json rows",
        "values lengths",
        "messages",
        "world formats activation_offload eight_bit liger prefetch sharding storage text_rows documents mask_options",
        "output_layer last_layer tiling tokenizer",
        "sequence_parallel replica_check",
        "attention",
        "table_rows packing tracking run_files",
        "sources masks",
        "masking model optimizer history flops matmul_rate node_check profiling pieces manifest fence agreement",
        "run_masker row_costs metering commit checkpoint_write identity output_dir plan loss_spikes trackers",
        "batching truncation token_columns claims checkpoint_search",
        "encoding",
        "encoding_cache",
        "dataset",
        "loss bad_step sequence_shards master_weights",
        "engine packing_check",
        "sequence_check",
        "deepspeed_engine checkpoint export export_check model_check memory_trace plots",
        "evaluation step_data",
        "loop memory trace_depth",
        "run_summary data_figures metrics intervals ways device_check",
        "resuming scoring loading questions scores halving",
        "train_imports",
        "train estimate generation trained_weights model_card evaluation_files",
        "subject inspection audit epoch",
        "model_subject",
        "answering",
        "painting findings",
        "page audit_text",
        "chat report_figures audit_page inspect_command estimate_text",
        "report_timeline report_inputs",
        "report audit_command estimate_command evaluate chat_command export_command",
        "optimize_prompt report_command import_command",
        "__main__",
    ],
    "sft/masks": [
        "__init__ origins control",
        "tracked",
        "tracker sandbox",
        "tracked_sandbox",
        "template",
        "renders",
        "placing",
        "completeness",
        "turns",
        "token_spans tokens",
        "plans",
    ],
    "sft/migration": [
        "__init__ mapping",
        "sharing data",
        "training axolotl_data axolotl_left llamafactory_data",
        "trl axolotl llamafactory",
        "tools text",
    ],
    # The design's order; `rank` runs under the command that the script shows, so the agent reads both.
    "launch": [
        "__init__ errors records processes peers disks",
        "checks chain notify env_settings claims env_file network memory_limit outcome rendezvous options hang "
        "secret_values forking hosts direct logs",
        "attempts site fork_server command_line remote_start",
        "spec",
        "rank watchdog devices places stages sweep_page profiles meeting notes pending row_cache node_facts",
        "settings command runs watch node_probe",
        "script agent jobs progress merged_logs node_group",
        "cluster report executor sweep limits examination following agents",
        "submit screen local request_checks input_checks diagnosis members",
        "host_checks",
        "batch resuming drill sweep_runner before node_report manifest",
        "identity snapshot",
        "doctor",
        "preflight",
        "verbs",
        "__main__",
    ],
    # A module for each command.
    "launch/verbs": [
        "__init__ common",
        "submission wait",
        "submit resume drill status cancel list logs top attach tensorboard clean completion profiles",
        "print run resubmit doctor sweep stages",
    ],
}
"""Package → its modules, lowest first. Those on one line do not import each other."""


def files(*packages: str) -> list[Path]:
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes, also those in functions; what only a type checker sees is left out."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not is_type_checking(child):
            yield from nodes(child)


@cache
def imports(path: Path) -> frozenset[str]:
    """Dotted names of what a file imports: `from launch import spec` gives `launch` and `launch.spec`."""
    found = set()
    for node in nodes(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(found)


def importers(name: str, *packages: str) -> set[str]:
    """The files that import a top-level package."""
    return {
        str(path.relative_to(ROOT))
        for path in files(*packages)
        if any(imported.split(".")[0] == name for imported in imports(path))
    }


@pytest.mark.parametrize(
    ("package", "name"),
    [
        *(("launch", name) for name in ("torch", "deepspeed", "transformers", "peft", "datasets", "numpy", "sft")),
        *(("sft", name) for name in ("launch", "submitit")),
        *(("strict_settings", name) for name in ("launch", "sft", "torch", "transformers")),
        *(("node_board", name) for name in ("launch", "sft", "strict_settings", "torch")),
    ],
)
def test_a_package_never_imports(package: str, name: str) -> None:
    assert importers(name, package) == set()


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("submitit", "launch/cluster.py"),
        ("deepspeed", "sft/deepspeed_engine.py"),
        ("datasets", "sft/table_rows.py"),
        ("bitsandbytes", "sft/eight_bit.py"),
        ("liger_kernel", "sft/liger.py"),
        ("matplotlib", "sft/plots.py"),
        ("wandb", "sft/trackers.py"),
        ("mlflow", "sft/trackers.py"),
        ("trackio", "sft/trackers.py"),
        ("yaml", None),
    ],
)
def test_a_library_is_imported_in_one_place(name: str, file: str | None) -> None:
    if file is None:
        assert {Path(found).parts[0] for found in importers(name, *PACKAGES)} == {"strict_settings"}
    else:
        assert importers(name, *PACKAGES) == {file}


@pytest.mark.parametrize("package", LAYERS)
def test_every_module_has_its_place_in_the_order(package: str) -> None:
    placed = [name for line in LAYERS[package] for name in line.split()]
    modules = [path.stem for path in (ROOT / package).glob("*.py")]
    packages = [Path(inner).name for inner in LAYERS if Path(inner).parent == Path(package)]
    assert sorted(placed) == sorted(modules + packages)


@pytest.mark.parametrize("package", LAYERS)
def test_imports_point_down(package: str) -> None:
    height = {name: number for number, line in enumerate(LAYERS[package]) for name in line.split()}
    prefix = package.replace("/", ".") + "."
    upward = []
    for path in (ROOT / package).rglob("*.py"):
        own = path.relative_to(ROOT / package).with_suffix("").parts[0]
        for imported in imports(path):
            name = imported.removeprefix(prefix).split(".")[0] if imported.startswith(prefix) else None
            if own in height and name in height and name != own and height[name] >= height[own]:
                upward.append(f"{path.stem} imports {imported}")
    assert upward == []


def test_the_quick_start_is_used_by_nothing_that_trains() -> None:
    outside = [path for path in files(*PACKAGES) if "quickstart" not in path.parts]
    assert [path for path in outside if any(name.startswith("sft.quickstart") for name in imports(path))] == []


def test_config_imports_only_the_standard_library_and_our_own_light_modules() -> None:
    ours = {"sft.config", "sft.deepspeed_config", "sft.errors", "sft.lora_args", "sft.setting_files"}
    ours |= {"sft.setting_rules"}
    for name in ours:
        for imported in imports(ROOT / f"{name.replace('.', '/')}.py"):
            head = imported.split(".")[0]
            assert head not in ("torch", "transformers", "numpy", "yaml", "datasets", "peft", "deepspeed"), imported


FORBIDDEN_CALLS = {
    "yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.load", "torch.save", "os.system", "os.popen",
    "all_gather_object", "gather_object", "broadcast_object_list", "scatter_object_list",
    "send_object_list", "recv_object_list", "eval", "exec",
}  # fmt: skip


def test_nothing_is_run_by_a_shell_or_read_as_code() -> None:
    found = []
    for path in files(*PACKAGES):
        for node in nodes(tree(path)):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                shell = any(
                    word.arg == "shell" and not (isinstance(word.value, ast.Constant) and word.value.value is False)
                    for word in node.keywords
                )
                if shell or name in FORBIDDEN_CALLS or name.split(".")[-1] in FORBIDDEN_CALLS - {"eval"}:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno} {name}")
        found += [
            f"{path}: {name}" for name in imports(path) if name.split(".")[0] in ("pickle", "dill", "cloudpickle")
        ]
    assert found == []


@pytest.mark.parametrize("path", files(*PACKAGES), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_can_be_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350


def _undocumented(path: Path) -> Iterator[str]:
    """Public functions and classes of a module. Methods are left out: those that implement a protocol are documented
    there, and a property may say it all by its name."""
    if not ast.get_docstring(tree(path)) and path.read_text(encoding="utf-8").strip():
        yield "the module"
    for node in tree(path).body:
        is_public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        if is_public and not ast.get_docstring(node):
            yield node.name


@pytest.mark.parametrize("path", files(*PACKAGES), ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_public_is_documented(path: Path) -> None:
    assert list(_undocumented(path)) == []


def test_the_engine_protocol_is_documented_and_implemented_whole() -> None:
    classes = {
        node.name: node
        for path in (ROOT / "sft/engine.py", ROOT / "sft/deepspeed_engine.py")
        for node in tree(path).body
        if isinstance(node, ast.ClassDef)
    }
    protocol = {node.name: node for node in classes["Engine"].body if isinstance(node, ast.FunctionDef)}
    assert all(ast.get_docstring(node) for node in protocol.values())
    for name in ("TorchEngine", "DeepSpeedEngine"):
        assert set(protocol) <= {node.name for node in classes[name].body if isinstance(node, ast.FunctionDef)}


def test_settings_and_arguments_are_read_without_any_global_of_the_process() -> None:
    """The environment is read in one place per package (and where a child's environment is made)."""
    readers = {
        path.stem
        for path in files("sft")
        for node in nodes(tree(path))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.getenv")
    }
    assert readers <= {"world", "train", "deepspeed_engine", "demo", "subject", "env_file", "__main__", "train_imports"}
