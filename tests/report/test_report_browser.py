"""A real browser draws every chart and has nothing to complain about."""

import re
import shutil
import subprocess

import pytest

from understudy.report import write_report


@pytest.mark.slow
def test_a_browser_draws_every_chart_without_an_error(make_run, tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no chromium is installed")
    report = write_report(make_run(methods=("kd", "<b>at"), gains=(0.03, -0.01)))
    command = [
        browser,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}/profile",
    ]
    command += ["--enable-logging=stderr", "--virtual-time-budget=8000", "--dump-dom", report.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    places = re.findall(r'<div class="chart[^>]*id="([^"]+)"[^>]*>(.*?)</div>', done.stdout, re.DOTALL)
    assert len(places) == 9
    for identifier, drawn in places:
        assert "<svg" in drawn, identifier
        assert 'class="mark-' in drawn, identifier
