"""`sparsekv demo`: one long document, many questions, four ways of reading it, real servers."""
