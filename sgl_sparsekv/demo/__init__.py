"""`sparsekv demo`: two acts on real servers, dense beside sparse."""
