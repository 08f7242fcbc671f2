"""python -m clipsight.engines: which runtimes and models are there, and model folders made."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from .bench import bench, bench_prepare
from .cache import model_cache
from .card import ModelCard
from .catalog import catalog
from .commandline import Parser, run, whole
from .errors import BackendError, BackendMissing, ModelError
from .obtaining import obtain
from .registry import BACKENDS, SHIPPED, Precision, available, find_model, needed, shipped_models


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status: 0 done, 1 a run that failed, 2 wrong use, 130 Ctrl-C."""
    parser = Parser("python -m clipsight.engines", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("list", help="the backends, installed or how to install them, and the shipped models")
    command.set_defaults(run=_list)
    command = commands.add_parser("fetch", help="fetch a model that is known by name, so that it is there without a network")
    command.set_defaults(run=_fetch)
    command.add_argument("name", metavar="NAME", help=f"{', '.join(catalog())}, or open_clip's NAME:TAG")
    command.add_argument("--accept-license", action="store_true", help="I have read its license, and it allows my use")
    command = commands.add_parser("export", help="write a model folder: card.json, ONNX graphs, image.safetensors")
    command.set_defaults(run=_export)
    command.add_argument(
        "weights",
        nargs="?",
        type=Path,
        metavar="WEIGHTS",
        help="OpenAI's .pt, open_clip's .pt or .safetensors, or a folder from a hub; nothing in it is run",
    )
    command.add_argument("--random", metavar="ARCH", help="random weights instead, for benchmarks: ViT-B-16, ViT-B-32, RN50x4")
    command.add_argument("--quick-gelu", action="store_true", default=None, help="the weights were trained with QuickGELU")
    command.add_argument("--seed", type=_seed, default=0, help="of the random weights (default 0)")
    command.add_argument("-o", "--output", required=True, type=Path, metavar="FOLDER")
    command.add_argument("--no-text", action="store_true", help="leave out the text tower")
    command.add_argument("--patches", action="store_true", help="the image graphs also give patch_embeds")
    command.add_argument(
        "--precision",
        nargs="+",
        choices=("fp32", "fp16"),
        default=("fp32", "fp16"),
        help="which image graphs to write (default both)",
    )
    command = commands.add_parser("verify", help="is a model folder still what it says? status 1 where it is not")
    command.set_defaults(run=_verify)
    command.add_argument("model", metavar="MODEL", help="a name or a folder")
    command = commands.add_parser("compare", help="which model, runtime and precision is best on this machine, and why")
    command.set_defaults(run=_compare)
    command.add_argument("models", nargs="+", metavar="MODEL", help="names or folders")
    command.add_argument("--engine", nargs="+", choices=tuple(BACKENDS), help="these runtimes alone (default all)")
    command.add_argument("--pictures", type=Path, metavar="FOLDER", help="a folder with a folder of pictures for each class")
    command.add_argument("--need", type=_with_unit("fps"), metavar="30fps", help="recognitions a second that are wanted")
    command.add_argument("--max-size", type=_with_unit("MB"), metavar="45MB", help="the most that the model's file may have")
    command.add_argument("--rounds", type=whole, default=5, help="rounds in which they take turns (default 5)")
    command.add_argument("--calls", type=whole, default=5, help="calls of each in a round (default 5)")
    command = commands.add_parser("build", help="compile a model with TensorRT, for the GPU here or for another one")
    command.set_defaults(run=_build)
    command.add_argument("model", metavar="MODEL", help="a name or a folder")
    command.add_argument(
        "--engine", choices=("tensorrt", "tensorrt-rtx"), help="(default tensorrt; with --target tensorrt-rtx)"
    )
    command.add_argument("--precision", choices=("fp16", "bf16", "fp32"), default="fp16", help="(default fp16)")
    command.add_argument("--max-batch", type=whole, default=32, metavar="N", help="pictures per forward (default 32)")
    command.add_argument("--device", type=int, metavar="N", help="the GPU of that index (default 0)")
    command.add_argument("--pictures", type=Path, metavar="FOLDER", help="pictures of your own that the plan is checked on too")
    command.add_argument("--target", metavar="SM", help="build for another GPU, such as sm89, and write a file (tensorrt-rtx)")
    command.add_argument("-o", "--output", type=Path, metavar="FILE", help="where, with --target")
    command = commands.add_parser("adopt", help="take a plan that was built with --target into the cache of this machine")
    command.set_defaults(run=_adopt)
    command.add_argument("plan", type=Path, metavar="PLAN", help="its file; PLAN.json lies beside it")
    command.add_argument("model", metavar="MODEL", help="the model it is of: a name or a folder")
    command.add_argument("--sha256", required=True, metavar="HEX", help="what `build` printed; a plan is a program, so be sure")
    command.add_argument("--device", type=int, metavar="N", help="the GPU of that index (default 0)")
    command = commands.add_parser("bench", help="milliseconds of every backend on this machine, in turn, and of prepare")
    command.set_defaults(run=_bench)
    command.add_argument("--model", default="demo", metavar="NAME|FOLDER", help="what to run (default demo)")
    command.add_argument("--engine", choices=tuple(BACKENDS), help="this one alone; TensorRT with every stage, beside torch")
    command.add_argument("--precision", choices=get_args(Precision), default="auto")
    command.add_argument("--max-batch", type=whole, default=256, metavar="N", help="TensorRT: the largest batch (default 256)")
    command.add_argument(
        "--torch-python", metavar="PYTHON", help="TensorRT: the interpreter that has torch, where it is another"
    )
    command.add_argument("--device", type=int, metavar="N", help="the GPU of that index (default the CPU)")
    command.add_argument("--rounds", type=whole, default=5, help="rounds in which the backends take turns (default 5)")
    command.add_argument("--calls", type=whole, default=10, help="calls of each in a round (default 10)")
    options = parser.parse_args(arguments)
    logging.basicConfig(format="clipsight: %(message)s", level=logging.INFO)
    status = 0

    def command_line() -> None:
        nonlocal status
        status = options.run(options) or 0

    return run(command_line) or status


def _list(_options: argparse.Namespace) -> None:
    print("backends")
    for name, install in available().items():
        print(f"  {name:12} {install or 'installed'}")
    print("models")
    here = [SHIPPED / name for name in shipped_models()]
    here += [folder for name in catalog() if ((folder := model_cache() / name) / "card.json").is_file()]
    for folder in here:
        card = ModelCard.load(folder)
        print(f"  {folder.name:12} {card.size} px, {card.dim} numbers a picture, license: {card.license or 'not stated'}")
    print("to be fetched once when they are first used")
    for entry in catalog().values():
        if model_cache() / entry.name not in here:
            print(f"  {entry.name:12} about {entry.megabytes} MB, license: {entry.license}")


def _fetch(options: argparse.Namespace) -> None:
    print(f"{options.name} is in {obtain(options.name, accept=options.accept_license)}")


def _export(options: argparse.Namespace) -> None:
    if (options.weights is None) == (options.random is None):
        raise ModelError("export needs WEIGHTS or --random ARCH, one of them")
    if options.weights is not None:
        from .obtaining import make_folder

        if not options.weights.exists():
            raise ModelError(f"{options.weights}: no such file")
        figures = make_folder(
            options.weights,
            options.output,
            quick_gelu=options.quick_gelu,
            precisions=options.precision,
            patches=options.patches,
        )
        for name, figure in figures.items():
            print(f"{options.output / name}: centered cosine to torch {figure:.7f}")
        card = ModelCard.load(options.output)
        print(f"{card.id} ({card.notes['form']}, space {card.space}) is in {options.output}")
        return
    try:
        from .export import export
        from .random_weights import random_card, random_model
        from .towers import find_arch
    except ImportError as error:
        raise BackendMissing(
            f'export needs {error.name or error}, which is not installed; run: pip install -e ".[export]"'
        ) from None
    arch = find_arch(options.random)
    if options.no_text:
        arch.pop("text_cfg")
    model, card = random_model(arch, options.seed), random_card(options.random, arch, options.seed)
    figures = export(model, options.output, card, options.precision, patches=options.patches)
    for name, figure in figures.items():
        print(f"{options.output / name}: centered cosine to torch {figure:.7f}")
    print(f"{card.id} is in {options.output}. Its weights are random: it recognizes nothing and is for measuring speed.")


def _verify(options: argparse.Namespace) -> int:
    from .verifying import verify

    return 0 if verify(options.model) else 1


def _compare(options: argparse.Namespace) -> None:
    from .comparing import compare

    compare(
        options.models,
        backends=options.engine,
        pictures=options.pictures,
        need=options.need,
        most=options.max_size,
        rounds=options.rounds,
        calls=options.calls,
    )


def _with_unit(unit: str) -> Callable[[str], float]:
    """An argument that must be a number above 0, its unit behind it or not."""

    def number(text: str) -> float:
        value = float(text.lower().removesuffix(unit.lower()))
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
        return value

    number.__name__ = f"number of {unit}"
    return number


def _build(options: argparse.Namespace) -> None:
    from .tensorrt_engine import ENGINES, Making, build_elsewhere

    folder = find_model(options.model)
    card = ModelCard.load(folder)
    name = options.engine or ("tensorrt-rtx" if options.target else "tensorrt")
    precision, most = options.precision, options.max_batch
    if options.target or options.output:
        if not (options.target and options.output):
            raise BackendError("--target SM and -o FILE go together: a plan for another GPU is written to a file")
        needed(name, nvidia=False)
        facts = build_elsewhere(name, folder, card, precision, most, options.target, options.output)
        print(
            f"{options.output}: {card.id} for {options.target}, {precision}, {facts['size'] / 1e6:.0f} MB, {facts['seconds']} s"
        )
        print("Copy it and its .json to the machine with that GPU and run there:")
        plan, model = shlex.quote(options.output.name), shlex.quote(options.model)
        print(f"  python -m clipsight.engines adopt {plan} {model} --sha256 {facts['sha256']}")
        return
    needed(name)
    pictures = []
    if options.pictures:
        from .pictures import pictures_in

        pictures = pictures_in(options.pictures)
    making = Making(pictures, anew=True)
    with ENGINES[name](folder, card, precision=precision, device=options.device, max_batch=most, making=making) as engine:
        print(f"{engine.plan}: {engine.facts['size'] / 1e6:.0f} MB, {engine.facts['seconds']} s")
        _figures(engine.facts)


def _adopt(options: argparse.Namespace) -> None:
    from .tensorrt_engine import adopt

    folder = find_model(options.model)
    with adopt(options.plan, options.sha256, folder, ModelCard.load(folder), device=options.device) as engine:
        print(f"{engine.plan}: adopted")
        _figures(engine.facts)


def _figures(facts: Mapping[str, Any]) -> None:
    print(
        f"beside ONNX Runtime fp32 on {facts['pictures']} pictures: centered cosine at least {facts['cosine']:.5f}, "
        f"the same label in {facts['agreement']:.1%}"
    )


def _bench(options: argparse.Namespace) -> None:
    if options.engine and BACKENDS[options.engine].nvidia:
        from .gpu_bench import bench as bench_gpu
        from .tensorrt_engine import ENGINES
        from .torch_peers import Peers

        needed(options.engine)
        folder, device = find_model(options.model), options.device or 0
        card, settings = ModelCard.load(folder), {"precision": options.precision, "max_batch": options.max_batch}
        with (
            ENGINES[options.engine](folder, card, device=device, **settings) as engine,
            Peers(folder, device, options.torch_python) as peers,
        ):
            bench_gpu(engine, peers, rounds=options.rounds, calls=options.calls)
        return
    only = [options.engine] if options.engine else None
    bench(options.model, only, device=options.device, precision=options.precision, rounds=options.rounds, calls=options.calls)
    bench_prepare(ModelCard.load(find_model(options.model)), rounds=options.rounds, calls=options.calls)


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError("a seed is a whole number from 0 to 4294967295")
    return value


_seed.__name__ = "seed"  # what argparse calls it in "invalid seed value"

if __name__ == "__main__":
    sys.exit(main())
