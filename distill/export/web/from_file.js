// Says what to do where the page was opened as a file: browsers load no modules from there.
"use strict";
if (location.protocol === "file:") {
  document.getElementById("status").textContent =
    "Expected this page from a web server but it was opened as a file; run python -m distill demo page=<this folder>, or " +
    "python -m http.server in it.";
}
