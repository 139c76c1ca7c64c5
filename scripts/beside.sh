#!/usr/bin/env bash
# Make .venv beside a Python that has a torch for its GPU already, as hosts of notebooks have: beside.sh [PYTHON].
# The environment sees that Python's torch and torchvision; all else that finetuning needs is installed into it at the versions
# of docker/requirements.lock. So nothing is downloaded twice, and the driver and the card stay those that torch was chosen
# for: the kit's own torch wants a driver of CUDA 13 and a card from Turing on.
set -euo pipefail
cd "$(dirname "$0")/.."
source docker/versions.env
python=${1:-python3}

die() { echo "beside: $*" >&2; exit 2; }

"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' ||
  die "$python is $("$python" --version 2>&1), expected Python 3.11 to 3.14; name another one: beside.sh PYTHON"
# One line for people, then the folders that torch and torchvision lie in.
told=$("$python" - <<'CHECK'
import pathlib, sys
try:
    import torch, torchvision
except ImportError as error:
    sys.exit(f"beside: {sys.executable} has no torch to share ({error}); run: make setup")
card = "no GPU"
if torch.cuda.is_available():
    major, minor = torch.cuda.get_device_capability()
    card = f"{torch.cuda.get_device_name()} (sm_{major}{minor})"
    built = [name.split("_") for name in torch.cuda.get_arch_list()]
    numbers = [(kind, int("".join(filter(str.isdigit, number)))) for kind, number in built]
    mine = 10 * major + minor
    # Code for a card runs on later ones of its generation; PTX, which is compiled on the spot, on all later ones.
    if not any(n <= mine and (kind == "compute" or n // 10 == major) for kind, n in numbers):
        sys.exit(
            f"beside: torch {torch.__version__} has no code for {card}, only for "
            f"{' '.join(torch.cuda.get_arch_list())}; choose another accelerator, such as T4"
        )
print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, {card}")
for folder in sorted({str(pathlib.Path(module.__file__).parents[1]) for module in (torch, torchvision)}):
    print(folder)
CHECK
) || exit 2
echo "beside: .venv beside $("$python" --version) with its $(head -n 1 <<<"$told")"

rm -rf .venv
"$python" -m pip install --quiet --disable-pip-version-check "uv==$UV_VERSION"
"$python" -m uv venv --quiet --python "$python" .venv
tail -n +2 <<<"$told" >"$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/beside.pth"
"$python" -m uv pip install --quiet --python .venv/bin/python "uv==$UV_VERSION"
install() { .venv/bin/uv pip install --quiet --python .venv/bin/python "$@"; }
# A marker that is never true takes a package, and what only that needs, out.
printf "%s ; python_version < '3'\n" torch torchvision >.venv/left-out.txt
install -r pyproject.toml --extra detectron2 --constraints docker/requirements.lock --overrides .venv/left-out.txt
bash scripts/detectron2_pypi.sh .venv/bin
install --no-deps --no-build-isolation --editable .
.venv/bin/triplet --version >/dev/null || die "the kit was installed but does not start"
touch .venv/complete
echo "beside: done; next: make doctor"
