"""Sphinx's settings for the site, whose pages `cpo_suite/report/site.py` gathers."""

project = "CPO"
author = "The CPO reference implementation maintainers"
language = "en"
extensions = ["myst_nb", "cpo_suite.report.formulas"]
exclude_patterns = ["figures"]  # files that pages link to; their tables in Markdown are no pages

# Notebooks: outputs as the run left them. Where an output has both, a picture instead of the live
# widget: that would need a kernel, and its scripts from another host.
nb_execution_mode = "off"
nb_ipywidgets_js: dict[str, dict[str, str]] = {}
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
myst_update_mathjax = False
html_math_renderer = "mathml"  # of report.formulas: Sphinx's own fetches MathJax from another host

html_theme = "furo"
html_title = "Contrastive Preference Optimization"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_use_index = False
