"""Where all parts meet: configs become runs, which are trained, evaluated and tabled."""
