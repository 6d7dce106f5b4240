"""`sparsekv eval`: is it still right? Asked of a running server, answered per cell of a grid."""
