"""Tables and figures of kernels' and decoders' speed, one set per GPU."""
