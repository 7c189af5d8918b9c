"""Claims, tables, figures and the site."""
