"""Values by site: a mapping that takes a site or its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from lens_steer.errors import ActivationError
from lens_steer.host.sites import Site

T = TypeVar("T")


class BySite(Mapping[Site, T], Generic[T]):
    """A mapping from sites to values that also takes a site's name; values may be made on demand."""

    def __init__(self, sites: tuple[Site, ...], get: Callable[[Site], T]) -> None:
        self._sites = {site.name: site for site in sites}
        self._get = get

    def __getitem__(self, site: Site | str) -> T:
        name = str(site)
        if name not in self._sites:
            raise ActivationError(f"there are no activations of {name}; there are {', '.join(self._sites)}")
        return self._get(self._sites[name])

    def __iter__(self) -> Iterator[Site]:
        return iter(self._sites.values())

    def __len__(self) -> int:
        return len(self._sites)
