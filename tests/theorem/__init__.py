"""The theorem: plain descent on `w'` is preconditioned descent on `w`, over whole trainings."""
