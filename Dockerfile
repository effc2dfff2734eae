# fingerpost as a container: docker build -t fingerpost . && docker run -p 8080:8080 -v ./fingerpost.yaml:/etc/fingerpost/fingerpost.yaml:ro fingerpost
FROM python:3.11-slim-bookworm AS build
WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY src src
COPY deploy/container/install install
RUN apt-get update -qq && apt-get install -qq --no-install-recommends binutils && sh install /fingerpost

# No shell and no package manager: Python 3.11, certificates and the user 65532. The build stage's Python is the same version.
FROM gcr.io/distroless/python3-debian12:nonroot
COPY --from=build /fingerpost /fingerpost
ENV PYTHONPATH=/fingerpost PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /etc/fingerpost
USER 65532:65532
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s \
  CMD ["/usr/bin/python3", "-S", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/health', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/bin/python3", "-S", "-m", "fingerpost"]
CMD ["serve", "/etc/fingerpost/fingerpost.yaml", "--host", "0.0.0.0"]
