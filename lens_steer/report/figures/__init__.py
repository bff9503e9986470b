"""Figures of frames, public as `lens_steer.figures`; results draw themselves by `.plot()` or `lens_steer.plot`.

`auroc_by_layer` and `auroc_by_concept` take the frame of `rank_experts`, `learning_curve` learned interventions. The
others take any long table and the names of its columns: `dose_response` (lines with intervals), `support_by_layer`
(units kept per layer, by edit), `overlap_bars` (shares beside what chance gives), `order_dependence` (one row per pair,
a dot per order) and `matrix` (an annotated heat map). Every one returns a plotly figure with title, note and axes in
units, in the look of `style`.
"""

from lens_steer.report.figures.auroc import auroc_by_concept as auroc_by_concept
from lens_steer.report.figures.auroc import auroc_by_layer as auroc_by_layer
from lens_steer.report.figures.bars import order_dependence as order_dependence
from lens_steer.report.figures.bars import overlap_bars as overlap_bars
from lens_steer.report.figures.learning import learning_curve as learning_curve
from lens_steer.report.figures.lines import dose_response as dose_response
from lens_steer.report.figures.lines import support_by_layer as support_by_layer
from lens_steer.report.figures.matrix import matrix as matrix
from lens_steer.report.figures.style import styled as styled
