"""bench: what is timed is what a bundle does, on shipped bundles and on small ones of each kind; what is absent."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from command import call
from contracts.executor import heed_ctrl_c
from flops_fit.data.cats import CLASSES
from flops_fit.data.codecs import codec_named
from flops_fit.data.sentences import made_up_sentences
from flops_fit.errors import InputError
from flops_fit.models import weights
from flops_fit.recipes.cats import CatFlow
from flops_fit.recipes.classifier import CatClassifier
from flops_fit.recipes.codec import MOST_WORDS
from flops_fit.recipes.sentences import SentenceFlow, fitted
from flops_fit.recipes.timed import Conditions, benchmark
from flops_fit.recipes.works import KINDS

ROOT = Path(__file__).resolve().parents[1]
WAIT_SECONDS = 120.0  # generous: asserted is that it happens at all
FLOAT32 = 1e-5  # of numbers near 1, summed in another order
ROUNDING = 1e-9  # of float64, relative
QUICK = ("--runs", "3", "--warmup", "1", "--no-compile")
SIZE = 32  # pixels
GUIDED = {"method": "euler", "steps": 3, "guidance": 2.0, "interval": [0.2, 0.4]}


def small(kind: str) -> dict[str, Any]:
    """The config of a bundle that takes no time."""
    known = {"kind": kind, "data": "none", "data_hash": "0", "classes": list(CLASSES), "image_size": SIZE}
    if kind == "sentences":
        return known | {"dim": 8, "arch": "mlp", "size": "tiny", "arguments": {"hidden": 8}, "path": "linear",
                        "preconditioned": False, "codec": "", "vectors": 10}  # fmt: skip
    if kind == "classifier":
        return known | {"backbone": "efficientnet-lite0"}
    return known | {"network": {"patch": 8, "hidden": 16, "layers": 1, "heads": 2}, "path": "linear",
                    "predicts": "velocity", "precondition": "unit", "augmentation": "none",
                    "sampling": GUIDED}  # fmt: skip


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of bundles by kind, as networks are before training."""
    folder = tmp_path_factory.mktemp("bundles")
    for kind, whole in {"sentences": SentenceFlow, "classifier": CatClassifier, "cats": CatFlow}.items():
        torch.manual_seed(0)
        config = small(kind)
        made = whole(config)
        if isinstance(made, SentenceFlow):
            made.normaliser.load_state_dict(fitted(torch.randn(40, 8))[0].state_dict())
        if isinstance(made, CatFlow):
            made.spectrum.fit(torch.randn(10, 3, SIZE, SIZE))
        weights.save(folder / f"small-{kind}", made.state_dict(), config)
    return folder


def bench(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> dict[str, Any]:
    """The one document on stdout, and nothing on stderr, which is no terminal here."""
    code, out, err = call(capsys, monkeypatch, "bench", *words, "--json")
    assert (code, err, out.count("\n")) == (0, "", 1)
    return json.loads(out)  # type: ignore[no-any-return]


def rows_of(document: dict[str, Any]) -> list[tuple[str, int, str]]:
    return [(row["work"], row["batch_size"], row["backend"]) for row in document["timings"]]


# --- documents -------------------------------------------------------------------------------------------------------


def test_a_document_of_the_shipped_flow(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = bench(capsys, monkeypatch, "sentences", *QUICK, "--batch-sizes", "2, 1,2", "--steps", "2", "--threads", "1")
    assert rows_of(found) == [(work, size, "torch") for work in ("velocity", "sample") for size in (2, 1)]
    for row in found["timings"]:
        assert (row["runs"], row["warmup"]) == (3, 1)
        assert row.keys() >= {"p50_ms", "mean_ms", "first_ms"} and not row.keys() & {"p95_ms", "p99_ms", "times_faster"}
        assert row["items_per_second"] == pytest.approx(1000 * row["batch_size"] / row["mean_ms"], rel=ROUNDING)
    folder = weights.located("sentences")
    content = [(folder / name).read_bytes() for name in (weights.WEIGHTS, weights.CONFIG)]
    assert found["model_sha256"] == hashlib.sha256(b"".join(content)).hexdigest()
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert found["files"] == {
        name: {"bytes": len(of), "sha256": hashlib.sha256(of).hexdigest()} for name, of in contents.items()
    }
    assert found["parameters"] == json.loads(content[1])["params"]
    assert found["sampling"] == {"method": "heun", "steps": 2, "until": 1.0}
    assert found["peak_memory_bytes"] > 4 * found["parameters"]  # they are in memory, in float32
    assert (found["machine"]["device"], found["machine"]["threads"]) == ("cpu", 1)
    assert found["machine"].keys() >= {"name", "cores", "load", "system", "torch", "python"}
    assert found["absent"] == {
        "compiled": "not asked for (--no-compile)", "onnxruntime": "the bundle has no model.onnx",
        "p95": "4 of 4 rows have fewer than 20 runs, of which one is beyond it; give --runs 20",
        "p99": "4 of 4 rows have fewer than 100 runs, of which one is beyond it; give --runs 100",
    }  # fmt: skip


@pytest.mark.parametrize(("bundle", "works", "item"), [
    ("codec", ("encode", "decode"), "sentence"), ("small-sentences", ("velocity", "sample"), "vector"),
    ("small-cats", ("velocity", "sample"), "picture"), ("small-classifier", ("forward",), "picture"),
])  # fmt: skip
def test_every_kind_of_bundle(
    bundle: str, works: tuple[str, ...], item: str, bundles: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(bundles)
    found = bench(capsys, monkeypatch, bundle, *QUICK, "--batch-sizes", "1,3")
    assert rows_of(found) == [(work, size, "torch") for work in works for size in (1, 3)]
    assert found["item"] == item
    own = {"small-sentences": {"method": "heun", "steps": 20, "until": 1.0},
           "small-cats": {name: GUIDED[name] for name in ("method", "steps", "guidance")}}  # fmt: skip
    assert found["sampling"] == own.get(bundle, {})


def test_the_table(bundles: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundles)
    words = ("bench", "small-sentences", "--runs", "20", "--no-compile", "--batch-sizes", "1,4", "--steps", "1")
    code, out, _ = call(capsys, monkeypatch, *words)
    lines = out.splitlines()
    [head] = [number for number, line in enumerate(lines) if line.startswith("work ")]
    assert code == 0 and " ".join(lines[head].split()).endswith("p95 ms p99 ms vectors/s faster runs first ms")
    cells = [line.split() for line in lines[head + 1 : head + 5]]
    assert [one[:3] for one in cells] == [[work, size, "torch"] for work in ("velocity", "sample") for size in "14"]
    for one in cells:
        assert float(one[3]) <= float(one[4]) and (one[5], one[7], one[8]) == ("-", "-", "20")
    assert "sampling: method heun, steps 1, until 1.0" in lines and "peak memory" in out
    assert "p99 absent: 4 of 4 rows have fewer than 100 runs" in out and "p95 absent" not in out


def test_threads_are_those_asked_for_and_afterwards_as_before(
    bundles: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bundles)
    before, seen = torch.get_num_threads(), set[int]()
    sample = SentenceFlow.sample

    def told(flow: SentenceFlow, *given: Any, **how: Any) -> Any:
        seen.add(torch.get_num_threads())
        return sample(flow, *given, **how)

    monkeypatch.setattr(SentenceFlow, "sample", told)
    found = bench(capsys, monkeypatch, "small-sentences", *QUICK, "--threads", "3", "--batch-sizes", "1")
    assert (found["machine"]["threads"], seen, torch.get_num_threads()) == (3, {3}, before)


# --- what is timed ---------------------------------------------------------------------------------------------------


def test_a_velocity_of_pictures_is_of_twice_as_many_rows_where_they_are_guided(bundles: Path) -> None:
    flow, rows = CatFlow.load(bundles / "small-cats"), list[int]()
    flow.network.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    KINDS["cats"].works(flow, flow.sampling)["velocity"](5)()
    flow.config["sampling"] = {**GUIDED, "guidance": 1.0}
    KINDS["cats"].works(flow, flow.sampling)["velocity"](5)()
    assert rows == [10, 5]


def test_what_is_timed_is_what_sample_and_classify_and_encode_do(bundles: Path) -> None:
    flow, labels = CatFlow.load(bundles / "small-cats"), torch.arange(15) % len(CLASSES)
    drawn: Any = KINDS["cats"].works(flow, {**flow.sampling, "steps": 2})["sample"](15)()
    assert torch.equal(drawn, flow.sample(labels, steps=2))

    said = SentenceFlow.load(bundles / "small-sentences")
    how = {"method": "euler", "steps": 2, "until": 0.5}
    found: Any = KINDS["sentences"].works(said, how)["sample"](4)()
    assert torch.equal(found.x, said.sample(4, 0, **how).x) and found.nfe == 2

    model = CatClassifier.load(bundles / "small-classifier")
    seen: Any = []
    model.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    heads: Any = KINDS["classifier"].works(model, {})["forward"](3)()
    assert heads.breeds.shape == (3, len(CLASSES))
    assert seen[0].shape == (3, 3, SIZE, SIZE) and seen[0].dtype == torch.uint8 and seen[0].max() > 200

    coder = codec_named("codec")
    works, sentences = KINDS["codec"].works(coder, {}), made_up_sentences(4, MOST_WORDS)
    torch.testing.assert_close(works["encode"](4)(), coder.encode(sentences), rtol=0, atol=0)
    assert works["decode"](4)() == coder.decode(coder.encode(sentences))


# --- compiled --------------------------------------------------------------------------------------------------------


OWN_WARNING = "ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"  # of a module of torch's compiler


@pytest.mark.filterwarnings(OWN_WARNING)
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler, and g++ is not here")
def test_compiled_beside_plain(bundles: Path, capsys: pytest.CaptureFixture[str],
                               monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.chdir(bundles)
    found = bench(capsys, monkeypatch, "small-sentences", "--runs", "4", "--batch-sizes", "2", "--steps", "1")
    assert rows_of(found) == [(w, 2, backend) for w in ("velocity", "sample") for backend in ("torch", "compiled")]
    assert [row.get("times_faster", 0) > 0 for row in found["timings"]] == [False, True] * 2
    assert "compiled" not in found["absent"]


@pytest.mark.filterwarnings(OWN_WARNING)
@pytest.mark.parametrize("kind", ["sentences", "classifier", "cats", "codec"])
def test_what_is_compiled_does_the_same(kind: str, bundles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced as for the compiler, and run by torch: what the compiler makes of it is torch's."""
    real, traced = torch.compile, list[object]()

    def compile_(model: Any, **how: Any) -> Any:
        traced.append(model)
        return real(model, backend="eager", **how)

    monkeypatch.setattr(torch, "compile", compile_)
    folder = weights.SHIPPED / "codec" if kind == "codec" else bundles / f"small-{kind}"
    plain, twin = KINDS[kind].load(folder), KINDS[kind].load(folder)
    KINDS[kind].compile(twin)
    assert traced
    torch.compiler.reset()
    how = KINDS[kind].sampling(plain)
    with torch.no_grad():
        for work, begin in KINDS[kind].works(plain, how).items():
            expected, got = begin(2)(), KINDS[kind].works(twin, how)[work](2)()
            assert flat(got) == pytest.approx(flat(expected), abs=FLOAT32), work


def flat(value: Any) -> list[float]:
    """The numbers of a result of whatever kind."""
    if isinstance(value, torch.Tensor):
        return value.float().flatten().tolist()  # type: ignore[no-any-return]
    if isinstance(value, str):
        return [float(ord(letter)) for letter in value]
    return flat(value.x) if hasattr(value, "x") else [number for part in value for number in flat(part)]


@pytest.mark.filterwarnings(OWN_WARNING)
def test_without_a_compiler_it_is_absent_and_says_why(
    bundles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import config

    monkeypatch.chdir(bundles)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # what was compiled before is not taken from there
    with config.patch({"cpp.cxx": ("/nowhere/c++",), "fx_graph_cache": False}):
        found = bench(capsys, monkeypatch, "small-sentences", "--runs", "2", "--batch-sizes", "1,3", "--steps", "1")
    assert {backend for _, _, backend in rows_of(found)} == {"torch"} and len(found["timings"]) == 4
    assert found["absent"]["compiled"].startswith("velocity, batch size 1: ")
    assert "/nowhere/c++" in found["absent"]["compiled"]


# --- ONNX Runtime ----------------------------------------------------------------------------------------------------


def with_model(bundles: Path, name: str, folder: Path, inputs: dict[str, tuple[int, list[Any]]]) -> Path:
    """A bundle whose model.onnx adds up each of its inputs."""
    onnx = pytest.importorskip("onnx", reason="onnx, which writes the model, is not installed")
    helper, single = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [node for one in inputs for node in (
        helper.make_node("Cast", [one], [f"{one}_f"], to=single),
        helper.make_node("ReduceSum", [f"{one}_f"], [f"{one}_sum"], keepdims=0),
    )]  # fmt: skip
    graph = helper.make_graph(
        nodes, "sums", [helper.make_tensor_value_info(one, *told) for one, told in inputs.items()],
        [helper.make_tensor_value_info(f"{one}_sum", single, []) for one in inputs],
    )  # fmt: skip
    shutil.copytree(bundles / name, folder / name)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(folder / name / "model.onnx"))
    return folder / name


@pytest.fixture
def runtime() -> Any:
    return pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")


FLOAT, UINT8, INT64 = 1, 2, 7  # of onnx.TensorProto
NOT_CHECKED = "model.onnx ran on random inputs; that it does the work of the weights was not checked"


@pytest.mark.parametrize(("name", "inputs", "work"), [
    ("small-classifier", {"pixels": (UINT8, ["batch", 3, SIZE, SIZE])}, "forward"),
    ("small-classifier", {"pixels": (FLOAT, [2, 3, SIZE, SIZE])}, "forward"),
    ("small-sentences", {"x": (FLOAT, ["batch", 8]), "t": (FLOAT, ["batch"])}, "velocity"),
    ("small-sentences", {"x": (FLOAT, ["batch", 8]), "t": (FLOAT, [])}, "velocity"),
])  # fmt: skip
def test_onnx_runtime_is_timed_beside_torch(
    name: str, inputs: dict[str, Any], work: str, runtime: Any, bundles: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder = with_model(bundles, name, tmp_path, inputs)
    found = bench(capsys, monkeypatch, str(folder), *QUICK, "--batch-sizes", "2")
    assert [row for row in rows_of(found) if row[2] == "onnxruntime"] == [(work, 2, "onnxruntime")]
    assert "onnxruntime" not in found["absent"] and found["files"]["model.onnx"]["bytes"] > 0
    assert not any("times_faster" in row for row in found["timings"])  # of work that may be another
    assert found["notes"] == [NOT_CHECKED]


def test_onnx_runtime_gets_both_rows_of_a_guided_picture(
    runtime: Any, bundles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = list[dict[str, Any]]()

    class Listens(runtime.InferenceSession):  # type: ignore[misc]
        def run(self, names: Any, inputs: Any) -> Any:
            given.append(inputs)
            return super().run(names, inputs)

    monkeypatch.setattr(runtime, "InferenceSession", Listens)
    inputs = {"x": (FLOAT, ["n", 3, SIZE, SIZE]), "t": (FLOAT, ["n"]), "labels": (INT64, ["n"])}
    folder = with_model(bundles, "small-cats", tmp_path, inputs)
    bench(capsys, monkeypatch, str(folder), *QUICK, "--batch-sizes", "3")
    assert len(given) == 1 + 1 + 3  # the first, the warm-up, the runs
    assert {name: one.shape for name, one in given[0].items()} == {
        "x": (6, 3, SIZE, SIZE), "t": (6,), "labels": (6,)}  # fmt: skip
    assert 0 <= given[0]["t"].min() < given[0]["t"].max() <= 1 and not given[0]["labels"].any()


@pytest.mark.parametrize(("inputs", "said"), [
    ({"pixels": (UINT8, [1, 3, SIZE, SIZE])}, "forward, batch size 2: model.onnx asks for pixels, tensor(uint8) of ["),
    ({"pixels": (UINT8, ["batch", 3, "high", "wide"])}, "with all other sizes known"),
    ({"pixels": (9, ["batch"])}, "asks for pixels, tensor(bool) of ['batch']"),
])  # fmt: skip
def test_inputs_that_nobody_knows_are_told(
    inputs: dict[str, Any], said: str, runtime: Any, bundles: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder = with_model(bundles, "small-classifier", tmp_path, inputs)
    found = bench(capsys, monkeypatch, str(folder), *QUICK, "--batch-sizes", "2")
    assert rows_of(found) == [("forward", 2, "torch")] and said in found["absent"]["onnxruntime"]


def test_a_damaged_model_is_told(
    runtime: Any, bundles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(bundles / "small-sentences", tmp_path / "damaged")
    (tmp_path / "damaged" / "model.onnx").write_bytes(b"no model")
    found = bench(capsys, monkeypatch, str(tmp_path / "damaged"), *QUICK, "--batch-sizes", "1", "--steps", "1")
    assert {row[2] for row in rows_of(found)} == {"torch"} and "model.onnx" in found["absent"]["onnxruntime"]


def test_without_onnx_runtime_the_extra_is_named(
    bundles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    shutil.copytree(bundles / "small-sentences", tmp_path / "bundle")
    (tmp_path / "bundle" / "model.onnx").write_bytes(b"")
    found = bench(capsys, monkeypatch, str(tmp_path / "bundle"), *QUICK, "--batch-sizes", "1", "--steps", "1")
    assert found["absent"]["onnxruntime"].endswith("to run model.onnx: pip install 'flops-fit[onnx]'")


def test_a_codec_is_more_than_one_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(weights.located("codec"), tmp_path / "bundle")
    (tmp_path / "bundle" / "model.onnx").write_bytes(b"")
    found = bench(capsys, monkeypatch, str(tmp_path / "bundle"), *QUICK, "--batch-sizes", "1")
    assert found["absent"]["onnxruntime"] == "model.onnx is of one network, on the CPU"


# --- bad input and interruption --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("typed", "said"), [
    ("gone", "BUNDLE: got 'gone'; allowed are c"),
    ("sentences --batch-sizes 1,x", "--batch-sizes: got '1,x'; allowed are whole numbers above 0"),
    ("sentences --batch-sizes 0", "--batch-sizes: got '0'"),
    ("sentences --batch-sizes 1,-2", "--batch-sizes: got '1,-2'"),
    ("sentences --batch-sizes 1.5", "--batch-sizes: got '1.5'"),
    ("sentences --batch-sizes ,", "--batch-sizes: got ','"),
    ("sentences --batch-sizes 1,2000000", "batch_sizes: got 2000000; allowed are whole numbers from 1 to 1,048,576"),
    ("sentences --runs 1", "runs: got 1; allowed is a whole number from 2 on"),
    ("sentences --warmup 0", "warmup: got 0; allowed is a whole number from 1 on"),
    ("sentences --threads 0", "threads: got 0; allowed is a whole number from 1 on"),
    ("sentences --steps 0", "steps: got 0; allowed is a whole number from 1 on"),
    ("codec --steps 5", "steps: got 5, but codec is a codec, which samples nothing; leave it out"),
    ("small-classifier --steps 5", "steps: got 5, but small-classifier is a classifier, which samples nothing"),
    ("adaptive --steps 5", "steps: got 5, but adaptive is sampled by dopri5, which finds its own; leave it out"),
    ("sentences --device cdua", "device: got 'cdua'"),
    ("sentences --device meta", "device: got 'meta'; allowed for a bundle of kind 'sentences': cpu and cuda"),
    ("other", "kind of other: got 'sonnet'; allowed are sentences, cats, classifier, codec"),
    ("small-cats/config.json", "BUNDLE: got 'small-cats/config.json'"),
])  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(
    typed: str, said: str, bundles: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bundles)
    if not Path("other").exists():
        weights.save(Path("other"), {}, {"kind": "sonnet"})
        tensors, config = weights.read(Path("small-cats"))
        weights.save(Path("adaptive"), tensors, {**config, "sampling": {"method": "dopri5"}})
    code, out, err = call(capsys, monkeypatch, "bench", *typed.split())
    assert (code, out, err.count("\n")) == (2, "", 1) and said in err, err


def test_what_does_not_fit_into_memory(bundles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> torch.Tensor:
        raise MemoryError

    monkeypatch.setattr(SentenceFlow, "noise", full)
    with pytest.raises(InputError, match="batch_sizes: velocity, batch size 8: too little memory; give smaller ones"):
        benchmark(str(bundles / "small-sentences"), Conditions((8,), compiled=False))


def test_none_is_no_batch_size() -> None:
    with pytest.raises(InputError, match="batch_sizes: got none"):
        Conditions(())


def test_ctrl_c_ends_with_130_and_progress_is_for_terminals(bundles: Path) -> None:
    """It would run for hours; it is interrupted when it says what it does."""
    command = [sys.executable, "-m", "flops_fit.cli", "bench", "small-sentences", "--no-compile", "--runs", "100000000"]
    ours, theirs = pty.openpty()
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=bundles, env=environment, preexec_fn=heed_ctrl_c, stdout=subprocess.PIPE,
                          stderr=theirs, text=True) as process:  # fmt: skip
        os.close(theirs)
        said = b""
        while b"velocity, batch size 1: torch\r\n" not in said:
            said += os.read(ours, 4096)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=WAIT_SECONDS)
    with contextlib.suppress(OSError):  # the other end is closed
        while more := os.read(ours, 4096):
            said += more
    os.close(ours)
    assert (process.returncode, out) == (130, "")
    assert said.decode().splitlines()[-1] == "stopped; nothing is kept of a benchmark that was not finished"
    assert b"Traceback" not in said
