"""Packed weights and the Triton kernels that multiply with them.

This folder needs torch and triton, nothing else of the project's dependencies. Where there is no GPU the kernels run in
Triton's interpreter (TRITON_INTERPRET=1 before the first import).
"""
