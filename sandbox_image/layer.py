"""Make the folder of further packages. Runs as root inside the build of a layer and nowhere else.

Every Python of the sandbox searches this folder before the image's own packages, so a package that is in both has the
version of the layer.
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

from assemble import EXECUTABLE, SOURCES_OF_EXTENSIONS, open_up, remove_all, unpack

LAYER = Path("/opt/cellblock/layer")
PROGRAMS = LAYER / "bin"
PYTHON = "/opt/cellblock/bin/python"
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


def main(wheels: Path) -> None:
    """Unpack the wheels of a folder into the layer, with their programs.

    Raises:
        SystemExit: the layer would replace a package that the kernel itself runs on.
    """
    refuse_kernels_own([wheel.name.split("-")[:2] for wheel in wheels.glob("*.whl")])
    PROGRAMS.mkdir(parents=True)
    for wheel in sorted(wheels.glob("*.whl")):
        print("unpacking", *wheel.name.split("-")[:2], flush=True)
        unpack(wheel, LAYER)
        unpack_programs(wheel)
    make_programs()
    if (LAYER / "kaleido/executable/kaleido").exists():
        for name, call in PICTURE_CALLS.items():
            if (LAYER / name).exists():
                with (LAYER / name).open("a") as module:
                    module.write(f"\nimport sys\nimport cellblock_site.plotlypictures\n{call}\n")
    for pattern in SOURCES_OF_EXTENSIONS.split():
        remove_all(LAYER.glob(pattern))
    print("compiling", flush=True)
    compile_all()
    for folder, _, files in os.walk(LAYER):
        for path in [Path(folder), *(Path(folder, name) for name in files)]:
            open_up(path)


def refuse_kernels_own(found: list[list[str]]) -> None:
    """Refuse packages that the kernel runs on. The host leaves out those of the image's own version."""
    needed = kernels_own()
    for name, version in found:
        if normal(name) in needed:
            has = metadata.version(normal(name))
            raise SystemExit(f"{normal(name)}=={version} cannot replace {has}, which the sandbox's kernel runs on")


def kernels_own() -> set[str]:
    """Return the normal names of the packages that the kernel and the capture of states need."""
    found: set[str] = set()
    waiting = ["ipykernel", "cloudpickle"]
    while waiting:
        name = normal(waiting.pop())
        if name in found:
            continue
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # needed on another system
            continue
        found.add(name)
        waiting += [re.split(r"[^\w.-]", need)[0] for need in needs if "extra ==" not in need]
    return found


def normal(name: str) -> str:
    """Return the normal form of a package's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def unpack_programs(wheel: Path) -> None:
    """Extract the programs that a wheel brings."""
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            folder, _, rest = member.filename.partition("/")
            scheme, _, name = rest.partition("/")
            if folder.endswith(".data") and scheme == "scripts" and name and "/" not in name:
                content = archive.read(member)
                if content.startswith(b"#!python"):
                    content = (
                        b"#!" + PYTHON.encode() + content.partition(b"\n")[0][8:] + b"\n" + content.partition(b"\n")[2]
                    )
                write_program(name, content)


def make_programs() -> None:
    """Write the programs that packages declare as entry points."""
    for declared in LAYER.glob("*.dist-info/entry_points.txt"):
        parser = configparser.ConfigParser(delimiters=("=",), interpolation=None, strict=False)
        parser.optionxform = str  # type: ignore[assignment, method-assign]
        parser.read_string(declared.read_text())
        for name, target in parser.items("console_scripts") if parser.has_section("console_scripts") else ():
            module, _, function = target.partition("[")[0].strip().partition(":")
            first = function.partition(".")[0]
            if "/" not in name and function:
                script = SCRIPT.format(python=PYTHON, module=module, first=first, function=function)
                write_program(name, script.encode())


def write_program(name: str, content: bytes) -> None:
    """Write an executable file."""
    path = PROGRAMS / name
    path.write_bytes(content)
    path.chmod(0o644 | EXECUTABLE)


def compile_all() -> None:
    """Compile the modules. One that does not compile stays as it is: packages ship templates and examples."""
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    compileall.compile_dir(LAYER, maxlevels=50, quiet=2, force=True, workers=0, invalidation_mode=mode)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
