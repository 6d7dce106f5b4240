"""Problems whose answer is a number, from files in the form of GSM8K and of AIME."""
