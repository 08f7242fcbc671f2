"""Models that are known by name: what they are, where their weights lie, and what their license asks.

OpenAI's are here; any other that open_clip knows, as NAME:TAG, is looked up in open_clip's own table where it is installed.
"""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """A model that can be fetched.

    name: as the user gives it, also the card's id. space: the card's. url, sha256: of the file of weights. megabytes: about
    how large it is. license: of the weights.
    """

    name: str
    space: str
    url: str
    sha256: str
    megabytes: int
    license: str

    @property
    def file(self) -> str:
        """The file's own name."""
        return self.url.rsplit("/", 1)[-1]


# From open_clip's table; OpenAI's addresses hold the files' sha256. Sizes are rounded.
_OPENAI = {
    "ViT-B-16": ("5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f", 351),
    "ViT-B-32": ("40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af", 354),
    "ViT-L-14": ("b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836", 933),
    "ViT-L-14-336": ("3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02", 934),
    "RN50": ("afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762", 256),
    "RN101": ("8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599", 292),
    "RN50x4": ("7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd", 422),
    "RN50x16": ("52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa", 661),
    "RN50x64": ("be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c", 1324),
}
_FILES = {"ViT-L-14-336": "ViT-L-14-336px.pt"}


def catalog() -> dict[str, Entry]:
    """The models that need no open_clip, by name."""
    return {
        name: Entry(
            name,
            f"{name}/openai",
            f"https://openaipublic.azureedge.net/clip/models/{sha256}/{_FILES.get(name, f'{name}.pt')}",
            sha256,
            megabytes,
            "MIT",
        )
        for name, (sha256, megabytes) in _OPENAI.items()
    }


def known_file(sha256: str) -> Entry | None:
    """The entry whose weights have this hash, wherever they came from."""
    return next((entry for entry in catalog().values() if entry.sha256 == sha256), None)
