"""sentences: flow matching over sentence vectors, with text out at the end.

command   flops-fit train sentences --arch mlp --flow icfm --data vectors.parquet --output outputs/sentences
what was learned, at which price: experiments/sentences
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as Folder
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from flops_fit.data.batches import split_by_hash
from flops_fit.data.codecs import Sonar, same
from flops_fit.data.vectors import Augmentation, Normaliser, Vectors
from flops_fit.errors import InputError
from flops_fit.evaluate.flow import Losses, held_out_losses
from flops_fit.evaluate.metric import Metric
from flops_fit.flow.baselines import Gaussian, full_covariance, zero
from flops_fit.flow.couplings import coupling_named
from flops_fit.flow.kernel import KernelVelocity, Memory, folded
from flops_fit.flow.loss import Flow, check_finite, flow_loss, squared_error
from flops_fit.flow.paths import Prediction, check_prediction, check_times, path_named
from flops_fit.flow.precondition import GaussianPreconditioned, Turned, rotated
from flops_fit.flow.solvers import Solution, Velocity, solve
from flops_fit.flow.times import times_named
from flops_fit.models import ARCHITECTURES, create_model, weights
from flops_fit.study.training import Training
from flops_fit.train.options import TrainOptions

KIND = "sentences"
SAMPLING = {"method": "heun", "steps": 20, "until": 1.0}  # where nobody says how to sample
KERNEL = "kernel"  # no network: the data themselves, with a few numbers to train
LR, KERNEL_LR = 1e-3, 0.05
ALONE_LR, ALONE_WIDTH = 4e-3, 192  # of dit-chunked by itself
HEADS = {"tiny": 1, "small": 2, "base": 3}  # of it
FLOWS = {  # name: (path, coupling)
    "icfm": ("linear", "independent"), "otcfm": ("linear", "optimal"), "gvp": ("gvp", "independent"),
    "reflow": ("linear", "independent"),
}  # fmt: skip
OPTIONS = TrainOptions(warmup=0.05, decay=0.5, weight_decay=0.1, looks=20, ema=0.1)
PREDICTS: Prediction = "velocity"  # what these networks say; in the config, for whoever reads the weights
NEEDED = ("dim", "arch", "size", "arguments", "path", "preconditioned", "data", "data_hash", "codec", "vectors")
PAIR_SEEDS = 1_000_000  # from there on: noise that no sample is made of
PAIRS = 2  # reflow: pairs that the teacher makes for each training vector
PAIR_STEPS = 20  # of Heun's method, for each


@dataclass(frozen=True)
class Matching:
    """(model, [vectors (B, D), ...]) -> loss. In training with the coupling, times and augmentation that were chosen;
    held out with the same pairs, since their best velocity is another, but uniform times and no augmentation."""

    path: str
    coupling: str = "independent"
    times: str = "uniform"
    augmentation: str = ""

    def __post_init__(self) -> None:
        _ = self.flow, Augmentation(self.augmentation)  # unknown names are told before anything is trained

    @property
    def flow(self) -> Flow:
        return Flow(path_named(self.path), times_named(self.times), coupling_named(self.coupling))

    def __call__(self, model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
        data, *folds = batch  # folds (B,), of data that are remembered (F19)
        if not model.training:
            return flow_loss(model, Flow(path_named(self.path), coupling=coupling_named(self.coupling)), data)
        return flow_loss(model, self.flow, Augmentation(self.augmentation)(data), *folds)


@dataclass(frozen=True)
class Straightening:
    """(model, [noise (B, D), what a teacher made of it]) -> loss (Liu et al. 2023, arXiv 2209.03003, reflow)."""

    path: str = "linear"

    def __call__(self, model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
        flow = Flow(path_named(self.path))
        point = flow.path.point(batch[0], batch[1], flow.times(len(batch[0]), batch[0].device))
        return squared_error(model(point.x, point.t), point).mean()


class SentenceFlow(nn.Module):
    """A trained flow with everything that it needs: statistics, principal axes, the Gaussian, the network.

    Its config says what it is; `save` and `load` keep both together.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config, dim = dict(config), config["dim"]
        self.path = path_named(config["path"])
        self.normaliser = Normaliser(dim, rotate=True)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("variances", torch.ones(dim))
        if config["arch"] == KERNEL:
            blank = torch.zeros(dim), torch.ones(dim), torch.zeros(config["vectors"], dim)
            self.network: nn.Module = KernelVelocity(HEADS[config["size"]], *blank, config["path"])
        else:
            self.network = create_model(config["arch"], config["size"], **config["arguments"], dim=dim)

    @property
    def gaussian(self) -> Gaussian:
        """Of the training data, in the coordinates that the network works in."""
        mean, variances = cast(Tensor, self.mean), cast(Tensor, self.variances)
        return Gaussian(mean, variances, torch.eye(len(mean)).to(mean), 0.0)

    @property
    def velocity(self) -> Velocity:
        """(x (B, D) normalised, t (B,)) -> (B, D)."""
        network = self.network
        if self.config["arch"] != KERNEL:
            known = {"mean": self.mean, "variances": self.variances} if self.config["preconditioned"] else {}
            network = over_gaussian(network, cast(Tensor, self.normaliser.axes), self.path.name, **cast(Any, known))
        known_velocity = Flow(self.path, predicts=self.config.get("predicts", PREDICTS)).velocity(network)

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            if x.shape[1:] != (self.config["dim"],):
                raise InputError(f"x: got shape {tuple(x.shape)}; the flow takes (B, {self.config['dim']})")
            check_times(t)
            return known_velocity(x, t)

        return velocity

    @torch.no_grad()
    def sample(
        self, n: int, seed: int = 0, method: str = "heun", steps: int = 20, velocity: Velocity | None = None,
        until: float = 1.0,
    ) -> Solution:  # fmt: skip
        """n vectors as they were before normalisation; the same noise for the same seed, whatever the solver.

        Args:
            until: the time at which they are read, above 0; before 1 there is still noise on them, sigma / alpha times
                the normaliser's scale. A codec that was trained with noise hears through it, and its decoder says what
                the flow has not decided yet.
        """
        _, alpha = self._noise_at(until)
        found = solve(velocity or self.velocity, self.noise(n, seed), method, steps, end=until)
        return Solution(self.normaliser.back(found.x / alpha), found.nfe, found.times, None)

    @torch.no_grad()
    def gaussian_sample(self, n: int, seed: int = 0, until: float = 1.0) -> Tensor:
        """(n, D) from the same noise by the flow of the Gaussian alone, on either path: what needs no training."""
        sigma, alpha = self._noise_at(until)
        spread = (cast(Tensor, self.variances) + (sigma / alpha) ** 2).sqrt()
        return self.normaliser.back(cast(Tensor, self.mean) + spread * self.noise(n, seed))

    def _noise_at(self, until: float) -> tuple[float, float]:
        """(sigma, alpha) at the time `until`."""
        if not 0 < until <= 1:
            raise InputError(f"until: got {until}; allowed is a time above 0, noise, up to 1, data")
        at = self.path.at(torch.tensor([until], dtype=torch.float64), torch.zeros(1, 1))
        return float(at.sigma), float(at.alpha)

    def noise(self, n: int, seed: int = 0) -> Tensor:
        """(n, D) that `sample` begins with."""
        drawn = torch.randn(n, self.config["dim"], generator=torch.Generator().manual_seed(seed))
        return drawn.to(cast(Tensor, self.mean))

    def losses(self, raw: Tensor) -> Losses:
        """On held-out vectors (n, D), beside the predictors that need no training."""
        check_finite("data", raw)
        data = self.normaliser(raw)
        known: dict[str, Velocity] = {
            "zero": zero, "isotropic": self.gaussian.isotropic().velocity(self.path),
            "gaussian": self.gaussian.velocity(self.path), "model": self.velocity,
        }  # fmt: skip
        return held_out_losses(known, self.path, data)

    @classmethod
    def load(cls, folder: Folder) -> SentenceFlow:
        """From a bundle. Raises InputError where it is damaged, of another kind, or does not fit its config."""
        tensors, config = weights.of_kind(folder, KIND, NEEDED)
        if wrong := [name for name in ("path", "data", "data_hash", "codec") if not isinstance(config[name], str)]:
            raise InputError(f"{folder}: {wrong[0]} in its config is {config[wrong[0]]!r}, no text; train it again")
        check_prediction(config.get("predicts", PREDICTS))
        try:
            made = cls(config)
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise InputError(f"{folder}: its config makes no network ({error}); train it again") from error
        weights.fill(made, tensors, str(folder))
        return made.eval()


def velocity_network(
    hidden: int, arch: str, size: str, dim: int, path: str, arguments: Mapping[str, Any], axes: Tensor,
    mean: Tensor | None = None, variances: Tensor | None = None,
) -> nn.Module:  # fmt: skip
    """What is trained: the network by its width, over the Gaussian where one is given."""
    network = create_model(arch, size, **{**arguments, "hidden": hidden}, dim=dim)
    return over_gaussian(network, axes, path, mean, variances)


def over_gaussian(
    network: nn.Module, axes: Tensor, path: str, mean: Tensor | None = None, variances: Tensor | None = None
) -> nn.Module:
    """A network on vectors along their principal axes (D, D); one that cuts them into pieces sees them as they were."""
    seen = Turned(network, axes) if getattr(network, "tokens", 1) > 1 else network
    return seen if mean is None or variances is None else GaussianPreconditioned(seen, mean, variances, path)


def training(
    vectors: Vectors,
    held_out: Vectors | None = None,  # None: a twentieth of the vectors, by hash of their place
    arch: str = "mlp",
    size: str = "base",
    flow: str = "icfm",
    epochs: float = 100.0,
    batch_size: int = 64,
    lr: float | None = None,  # None: see `usual_lr`
    seed: int = 0,
    times: str = "uniform",
    augmentation: str = "",
    statistics: str | None = None,  # of vectors: standard, robust or common; None: see `usual_statistics`
    preconditioned: bool | None = None,  # learn what the full-covariance Gaussian does not know; None: see `alone`
    arguments: Mapping[str, Any] | None = None,  # of the network, beside its size
    options: TrainOptions | None = None,
    teacher: SentenceFlow | None = None,  # for reflow: the flow to be straightened
) -> Training:
    """One flow over sentence vectors. Its bundle is a `SentenceFlow`.

    Raises:
        InputError: an unknown name, vectors that cannot be used, reflow without a teacher.
    """
    _check_names(arch, size, flow, teacher)
    chosen = {
        "times": times != "uniform", "augmentation": augmentation not in ("", "none"),
        "statistics": statistics is not None, "gaussian": preconditioned is False, "arguments": bool(arguments),
    }  # fmt: skip
    _check_unread(arch, flow, [name for name, other in chosen.items() if other])
    _check_teacher(teacher, vectors)
    if held_out is None:
        inside, outside = split_by_hash(len(vectors))
        vectors, held_out = vectors.at(inside), vectors.at(outside)
    path, coupling = FLOWS[flow]
    statistics = usual_statistics(vectors.codec) if statistics is None else statistics
    preconditioned = not alone(arch, vectors.codec) if preconditioned is None else preconditioned
    dim, given = vectors.values.shape[1], dict(arguments or {})
    normaliser, gaussian = (
        fitted(vectors.values, statistics) if teacher is None else (teacher.normaliser, teacher.gaussian)
    )
    config = {
        "kind": KIND, "dim": dim, "arch": arch, "size": size, "arguments": given, "flow": flow, "path": path,
        "predicts": PREDICTS, "preconditioned": preconditioned, "times": times, "augmentation": augmentation,
        "statistics": statistics if teacher is None else teacher.config["statistics"],
        "gaussian": gaussian.note if teacher is None else teacher.config["gaussian"],
        "data": vectors.described, "data_hash": vectors.fingerprint, "codec": vectors.codec,
        "held_out_hash": held_out.fingerprint, "vectors": len(vectors),
    }  # fmt: skip
    objective = Matching(path, coupling, times, augmentation) if teacher is None else Straightening(path)
    data: tuple[Tensor, ...] = (normaliser(vectors.values),)
    judge: tuple[Tensor, ...] = (normaliser(held_out.values),)
    if teacher is not None:
        data, judge = (
            pairs(teacher, PAIRS * len(vectors), seed=PAIR_SEEDS + 2 * seed),
            pairs(teacher, len(held_out), seed=PAIR_SEEDS + 2 * seed + 1),
        )

    if arch == KERNEL:
        folds, others = folded(data[0], seed)
        network = _remembering(size, path, gaussian, data[0], others)
        data = (*data, folds)
    else:
        over = gaussian if preconditioned else None
        network = _learning(arch, size, path, given, over, cast(Tensor, normaliser.axes))

    def parts(model: nn.Module) -> Mapping[str, Tensor]:
        return _whole(config, normaliser, gaussian, model).state_dict()

    def judged(model: nn.Module) -> list[Metric]:
        return _whole(config, normaliser, gaussian, model).eval().losses(held_out.values).metrics()

    return Training(
        name=f"{arch} {flow}", **network,
        dataset=TensorDataset(*data), held_out=TensorDataset(*judge),
        objective=objective,
        epochs=epochs, batch_size=batch_size, seed=seed,
        lr=usual_lr(arch, preconditioned, network["size"]) if lr is None else lr,
        options=options or OPTIONS,
        config=config, parts=parts, evaluate=judged, half=True,
    )  # fmt: skip


def _remembering(
    size: str, path: str, gaussian: Gaussian, values: Tensor, others: Sequence[Memory]
) -> dict[str, Any]:  # fmt: skip
    """What `Training` must know of remembered data."""
    memory = {"mean": gaussian.mean, "variances": gaussian.variances, "rows": values - gaussian.mean}
    return {
        "model_cls": KernelVelocity, "size_param": "heads", "size": HEADS[size],
        "model_kwargs": {**memory, "path": path, "others": others},
    }  # fmt: skip


def _learning(
    arch: str, size: str, path: str, given: Mapping[str, Any], over: Gaussian | None, axes: Tensor
) -> dict[str, Any]:
    """What `Training` must know of a network, over a Gaussian or by itself. Raises InputError for wrong arguments."""
    if "dim" in given:
        raise InputError("arguments: got dim, which is that of the vectors; leave it out")
    create_model(arch, size, **given, dim=len(axes))
    known = {} if over is None else {"mean": over.mean, "variances": over.variances}
    return {
        "model_cls": velocity_network, "size_param": "hidden",
        "size": given.get("hidden", ARCHITECTURES[arch].sizes[size]["hidden"]),
        "model_kwargs": {
            "arch": arch, "size": size, "dim": len(axes), "path": path, "arguments": given, "axes": axes, **known,
        },
    }  # fmt: skip


def alone(arch: str, codec: str) -> bool:
    """Whether a network learns more by itself than over the Gaussian: as pieces of vectors that were made in pieces, as
    those of our own codec are. Of SONAR's vectors, or through any other network, it is the other way round, and by far
    (experiments/sentences)."""
    return arch == "dit-chunked" and _ours(codec)


def usual_lr(arch: str, preconditioned: bool, width: int) -> float:
    """The largest learning rate where nobody says one (experiments/sentences/LOG.md); of a wide network by itself less,
    as 1 / width (Yang et al. 2022, arXiv 2203.03466)."""
    if arch == "dit-chunked" and not preconditioned:
        return ALONE_LR * min(1.0, ALONE_WIDTH / width)
    return KERNEL_LR if arch == KERNEL else LR


def usual_statistics(codec: str) -> str:
    """Our own codec gives the numbers that say most by far the largest variance, since it has learned to be
    heard through noise: scaled each for itself they would be drowned in what says nothing."""
    return "common" if _ours(codec) else "standard"


def _ours(codec: str) -> bool:
    return codec not in ("", Sonar.reference)


def _check_names(arch: str, size: str, flow: str, teacher: SentenceFlow | None) -> None:
    if flow not in FLOWS:
        raise InputError.unknown("flow", flow, FLOWS)
    if arch not in {*ARCHITECTURES, KERNEL}:
        raise InputError.unknown("arch", arch, [*ARCHITECTURES, KERNEL])
    if arch == KERNEL and size not in HEADS:
        raise InputError.unknown("size", size, HEADS)
    if (flow == "reflow") != (teacher is not None):
        raise InputError(
            "teacher: reflow straightens a trained flow, and nothing else takes one; give --teacher BUNDLE with reflow"
        )
    if arch == KERNEL and flow not in ("icfm", "gvp"):
        raise InputError(f"arch: {KERNEL} with flow {flow!r}; it remembers pairs of chance: use icfm or gvp")


def _check_teacher(teacher: SentenceFlow | None, vectors: Vectors) -> None:
    if teacher is None:
        return
    if not same(teacher.config["codec"], vectors.codec) or teacher.config["dim"] != vectors.values.shape[1]:
        told = f"teacher: its vectors are of {teacher.config['codec'] or 'nobody knows which codec'}"
        raise InputError(f"{told}, these of {vectors.codec or 'nobody knows which'}; straighten it on its own kind")


def _check_unread(arch: str, flow: str, chosen: Sequence[str]) -> None:
    """What reflow takes from its teacher, and what remembered data have no use for."""
    unread = {"times", "augmentation", "statistics"} if flow == "reflow" else set()
    unread |= {"augmentation", "gaussian", "arguments"} if arch == KERNEL else set()
    wrong = [name for name in chosen if name in unread]
    if wrong:
        names = ["arguments (--hidden)" if name == "arguments" else name for name in wrong]
        raise InputError(f"{wrong[0]}: {arch} with {flow} does not read it; leave {' and '.join(names)} as they are")


def fitted(values: Tensor, statistics: str = "standard") -> tuple[Normaliser, Gaussian]:
    """(normaliser with principal axes, the Gaussian along them) of training vectors (n, D)."""
    plain = Normaliser(values.shape[1]).fit(values, cast(Any, statistics))
    axes, along = rotated(full_covariance(plain(values)))
    normaliser = Normaliser(values.shape[1], rotate=True)
    normaliser.load_state_dict({**plain.state_dict(), "axes": axes})
    return normaliser, along


def pairs(teacher: SentenceFlow, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """(noise, where the teacher takes it), both (n, D) normalised."""
    noise = torch.randn(n, teacher.config["dim"], generator=torch.Generator().manual_seed(seed))
    return noise, torch.cat([solve(teacher.velocity, part, "heun", PAIR_STEPS).x for part in noise.split(512)])


def _whole(config: Mapping[str, Any], normaliser: Normaliser, gaussian: Gaussian, model: nn.Module) -> SentenceFlow:
    network = model
    while isinstance(network, GaussianPreconditioned | Turned):
        network = network.network
    made = SentenceFlow(config)
    made.normaliser.load_state_dict(normaliser.state_dict())
    made.network.load_state_dict(network.state_dict())
    cast(Tensor, made.mean).copy_(gaussian.mean)
    cast(Tensor, made.variances).copy_(gaussian.variances)
    return made
