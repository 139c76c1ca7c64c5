"""MkDocs hooks: pages that are made from the code, pictures without scripts, links that leave docs/.

The pages in docs/ read well on GitHub as they are. What the site needs besides is made here when it is
built.
"""

import os
import re
import sys
from pathlib import Path
from typing import Any

import yaml
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

KIT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(KIT))

from scripts.docs import diagram, reference  # noqa: E402 - found once the kit is on the path

TAKEN_IN = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
"""Page of the site -> file of the kit."""
EXTERNAL = re.compile(
    r'<(?:script|img|iframe)\b[^>]*\bsrc="(?:https?:)?//|<link\b[^>]*rel="stylesheet"[^>]*href="https?://'
)


def address() -> str | None:
    """Return the repository's address: CITATION.cff's, else that of the workflow that builds the site."""
    named = yaml.safe_load((KIT / "CITATION.cff").read_text()).get("repository-code")
    server, name = os.environ.get("GITHUB_SERVER_URL"), os.environ.get("GITHUB_REPOSITORY")
    return named or (f"{server}/{name}" if server and name else None)


def on_config(config: Any) -> Any:
    """Fill in the repository's address where it is known."""
    config.repo_url = address()
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made from the code, the files of results, and the picture of the report."""
    made = {"commands.md": reference.commands(), "configs.md": reference.configs()}
    for page, path in TAKEN_IN.items():
        made[page] = (KIT / path).read_text().replace("](docs/", "](")
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    for path in (KIT / "benchmarks" / "results").iterdir():
        files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in generated parts, draw Mermaid's pictures, and mend links that leave docs/."""
    markdown = re.sub("<!-- generated: messages -->", lambda _: reference.messages(), markdown)
    markdown = re.sub(r"^```(bash|console)\b.*$", r"```\1", markdown, flags=re.M)
    markdown = re.sub(
        r"^```mermaid\n(.*?)^```$",
        lambda found: diagram.draw(found[1], f"Diagram of the page {page.title}"),
        markdown,
        flags=re.M | re.S,
    )
    markdown = re.sub(r"\]\((?:\.\./)?benchmarks/results/", "](results/", markdown)
    return re.sub(r"\[([^\]]+)\]\(\.\./([^)\s]+)\)", _source_link, markdown)


def _source_link(found: re.Match[str]) -> str:
    """Link a file of the kit to the repository, or show its name where the repository is not known."""
    text, path = found[1], found[2]
    if not (KIT / path.partition("#")[0]).exists():
        raise PluginError(f"a link to {path}, which does not exist")
    kind = "tree" if (KIT / path).is_dir() else "blob"
    return f"[{text}]({address()}/{kind}/main/{path})" if address() else text


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Refuse a page that loads anything from the network."""
    if found := EXTERNAL.search(output):
        raise PluginError(f"{page.file.src_path} loads from the network: {found[0]}")
    return output
