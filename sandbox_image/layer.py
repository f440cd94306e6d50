"""Make the folder of further packages. Runs as root inside the build of a layer and nowhere else.

Every Python of the sandbox searches this folder before the image's own packages, so a package that is in both has the
version of the layer. No Python of the build searches it before it is complete: no code of a package runs here.
"""

from __future__ import annotations

import compileall
import configparser
import os
import py_compile
import re
import sys
import zipfile
from importlib import metadata
from pathlib import Path

from assemble import EXECUTABLE, OWNERS, SITE, modules_of, normal, open_up, unpack
from packaging.requirements import Requirement

REFUSAL = "refused: "  # begins the line that the host shows as the reason
LAYER = Path("/opt/cellblock/layer")
PYTHON = "/opt/cellblock/bin/python"
LAUNCHED = ("ipykernel", "cloudpickle")  # what the kernel and the capture of states import
LEFT_OUT = {"debugpy"}  # of the image, although ipykernel names it
STARTED_BY_EVERY_PYTHON = {"sitecustomize", "usercustomize"}
MOST_BYTES = 8 * 1024**3  # of one unpacked wheel
# Added to these modules of plotly.
PICTURE_CALLS = {
    "plotly/io/_kaleido.py": "cellblock_site.plotlypictures.install_in_export(sys.modules[__name__])",
    "plotly/io/_renderers.py": "cellblock_site.plotlypictures.install_in_renderers(renderers)",
}
SCRIPT = """#!{python}
import sys
from {module} import {first}
sys.exit({function}())
"""


def main(wheels: Path, target: Path) -> None:
    """Unpack the wheels of a folder into ``target``, with their programs, and move that to its place.

    Raises:
        SystemExit: the layer does not fit the image, or a wheel is malformed. The last line says why.
    """
    programs = target / "bin"
    found = [checked(wheel) for wheel in sorted(wheels.glob("*.whl"))]
    refuse_replaced_kernel(found)
    programs.mkdir(parents=True)
    for wheel in found:
        print("unpacking", *wheel.name.split("-")[:2], flush=True)
        try:
            unpack(wheel, target)
            unpack_programs(wheel, programs)
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            refuse(f"{wheel.name} cannot be unpacked: {error}")
    make_programs(target, programs)
    refuse_broken(target)
    add_pictures(target)
    print("compiling", flush=True)
    compile_all(target)
    for folder, _, files in os.walk(target):
        for path in [Path(folder), *(Path(folder, name) for name in files)]:
            open_up(path)
    target.rename(LAYER)


def refuse(reason: str) -> None:
    """End the build.

    Raises:
        SystemExit: always.
    """
    print(REFUSAL + " ".join(reason.split())[:1000], flush=True)
    raise SystemExit(1)


def refuse_replaced_kernel(wheels: list[Path]) -> None:
    """Refuse wheels that would replace modules that the kernel runs on, or that every Python runs at its start."""
    needed, owners = kernels_own(), OWNERS.read_text().splitlines() if OWNERS.exists() else []
    owner = dict(line.split("=", 1) for line in owners)
    wrong = []
    for wheel in wheels:
        name, version = wheel.name.split("-")[:2]
        if normal(name) in needed:
            has = metadata.version(normal(name))
            wrong.append(f"{normal(name)}=={version} would replace version {has}, which the sandbox's kernel runs on")
            continue
        wrong += [
            f"{normal(name)}=={version} would replace the module {module}, which the sandbox runs on"
            for module in modules_of(wheel)
            if module in STARTED_BY_EVERY_PYTHON or module.startswith("cellblock_") or owner.get(module) in needed
        ]
    if wrong:
        refuse("; ".join(wrong[:10]))


def checked(wheel: Path) -> Path:
    """Return the wheel, unless it is malformed or would fill the disk."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            if sum(member.file_size for member in archive.infolist()) > MOST_BYTES:
                refuse(f"{wheel.name} has more than {MOST_BYTES} bytes")
    except zipfile.BadZipFile as error:
        refuse(f"{wheel.name} cannot be unpacked: {error}")
    return wheel


def kernels_own() -> set[str]:
    """Return the normal names of the packages that the kernel and the capture of states need."""
    found: set[str] = set()
    waiting = list(LAUNCHED)
    while waiting:
        name = normal(waiting.pop())
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # needed on another system
            continue
        if name not in found:
            found.add(name)
            waiting += [need.name for need in map(Requirement, needs) if applies(need)]
    return found


def applies(need: Requirement) -> bool:
    """Return whether a requirement counts here, without any extra."""
    return need.marker is None or need.marker.evaluate({"extra": ""})


def refuse_broken(target: Path) -> None:
    """Refuse a layer with which a package would lack what it needs, or have another version of it."""
    path = [str(target), str(SITE)]
    versions: dict[str, str] = {}
    found = []
    for package in metadata.distributions(path=path):
        if normal(package.name) not in versions:  # else the layer replaces it
            versions[normal(package.name)] = package.version
            found.append(package)
    wrong = []
    for package in found:
        for need in filter(applies, map(Requirement, package.requires or [])):
            has = versions.get(normal(need.name))
            if has is None and normal(need.name) not in LEFT_OUT:
                wrong.append(f"{normal(package.name)} {package.version} needs {need.name}, which is not there")
            elif has is not None and not need.specifier.contains(has, prereleases=True):
                wrong.append(f"{normal(package.name)} {package.version} needs {need.name}{need.specifier}, not {has}")
    if wrong:
        refuse("; ".join(wrong[:10]) + (f"; and {len(wrong) - 10} more" if len(wrong) > 10 else ""))


def unpack_programs(wheel: Path, programs: Path) -> None:
    """Extract the programs that a wheel brings."""
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            folder, _, rest = member.filename.partition("/")
            scheme, _, name = rest.partition("/")
            if folder.endswith(".data") and scheme == "scripts" and is_plain(name):
                content = archive.read(member)
                write_program(programs / name, re.sub(rb"\A#!pythonw?(?=\s)", b"#!" + PYTHON.encode(), content))


def make_programs(target: Path, programs: Path) -> None:
    """Write the programs that packages declare as entry points."""
    for package in metadata.distributions(path=[str(target)]):
        try:
            declared = list(package.entry_points.select(group="console_scripts"))
        except (ValueError, configparser.Error) as error:
            refuse(f"{package.name} declares malformed programs: {error}")
        for point in declared:
            module, _, function = point.value.partition("[")[0].strip().partition(":")
            if is_plain(point.name) and re.fullmatch(r"[\w.]+", module) and re.fullmatch(r"[\w.]+", function):
                first = function.partition(".")[0]
                script = SCRIPT.format(python=PYTHON, module=module, first=first, function=function)
                write_program(programs / point.name, script.encode())


def is_plain(name: str) -> bool:
    """Return whether a name is that of a file in a folder."""
    return re.fullmatch(r"[\w@+-][\w.@+-]*", name) is not None


def write_program(path: Path, content: bytes) -> None:
    """Write an executable file, unless a package has a folder of that name."""
    if not path.is_dir():
        path.write_bytes(content)
        path.chmod(0o644 | EXECUTABLE)


def add_pictures(target: Path) -> None:
    """Let plotly draw with the browser of kaleido, if both are there."""
    if (target / "kaleido/executable/kaleido").exists():
        for name, call in PICTURE_CALLS.items():
            if (target / name).exists():
                with (target / name).open("a") as module:
                    module.write(f"\nimport sys\nimport cellblock_site.plotlypictures\n{call}\n")


def compile_all(target: Path) -> None:
    """Compile the modules. One that does not compile stays as it is: packages ship templates and examples."""
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    compileall.compile_dir(
        target, maxlevels=50, quiet=2, force=True, workers=0, invalidation_mode=mode, stripdir=target, prependdir=LAYER
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
