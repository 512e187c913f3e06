"""SPair-U (Mariotti et al., "Jamais Vu", NeurIPS 2025): SPair-71k's test pairs with keypoints that its training pairs lack.

The annotations have SPair-71k's format. They lie in SPair-71k's folder, as the authors' code reads them
(github.com/VICO-UoE/JamaisVu, ``utils/utils_dataset.py``): ``ExtraPairAnnotation/test/*.json`` and
``ExtraImageAnnotation/<category>/*.json`` beside ``Layout`` and ``JPEGImages``. This reader follows that code and has been
tested on a miniature of the layout only, not on the published files.

Which of the new keypoints mirror each other is not published, so there are no symmetric groups.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from distill.core.errors import DataError
from distill.data.datasets.spair71k import SPLITS, SPairPairs


class SPairUPairs(SPairPairs):
    """Those of SPair-71k's pairs that SPair-U annotates; arguments as for :class:`SPairPairs`, the split is "test".

    Raises:
        ConfigError: for a setting that is none of the choices.
        DataError: when no pair of the split has an annotation, or a file is malformed.
    """

    name = "spair_u"
    prefix = "Extra"
    splits = ("test",)
    has_paper_convention = False
    symmetric_groups: Mapping[str, Sequence[Sequence[int]]] = MappingProxyType({})

    def _annotated_lines(self, lines: dict[tuple[str, str], str]) -> dict[tuple[str, str], str]:
        """Returns the lines of the layout that have an annotation; the others are added to ``ignored``."""
        annotated = {pair: line for pair, line in lines.items() if self._pair_file(line).is_file()}
        if not annotated:
            raise DataError(
                f"Expected SPair-U's annotations in {self.root / 'ExtraPairAnnotation' / SPLITS[self.split]} but found none; "
                "put its two folders into SPair-71k's, named ExtraPairAnnotation and ExtraImageAnnotation."
            )
        self.ignored |= {
            line: "SPair-U has no annotation of it" for pair, line in lines.items() if pair not in annotated
        }
        return annotated
