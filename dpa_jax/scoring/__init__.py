"""From a trained run and images to scores, maps and figures of merit."""
