"""Problems whose answer is a program, judged by its tests in a sandbox."""
