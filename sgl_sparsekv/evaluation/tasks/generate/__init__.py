"""Long outputs, dense beside sparse: what is said freely, and how far it strays."""
