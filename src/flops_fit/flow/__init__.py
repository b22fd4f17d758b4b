"""Flow matching that can be read in one sitting: path, times, coupling -> loss; velocity, guidance -> solver -> sample.

Lipman et al. 2023 (arXiv 2210.02747). Tensors and callables only: nothing here knows a model class, a data
set or a file.
"""
