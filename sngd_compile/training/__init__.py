"""What surrounds an optimizer's step: refresh of the roots, several processes, copies, warnings."""
