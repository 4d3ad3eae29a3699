"""Free text: graded by a rubric, which a program reads or a served model judges."""
