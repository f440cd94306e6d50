# More packages on a sandbox image, as one layer. `cellblock image build --requirements FILE` provides the context: this
# file, the two programs, and wheels/ with the packages that the lock file pins. The build needs no network.
ARG SANDBOX
FROM ${SANDBOX} AS assembled
ARG BUILD
LABEL org.cellblock.stage=${BUILD}
USER 0:0
COPY wheels /build/wheels
COPY assemble.py layer.py /build/
# The folder for unpacking is on no search path, and the working folder neither.
RUN ["/opt/cellblock/bin/python", "-B", "/build/layer.py", "/build/wheels", "/opt/cellblock/unpacked"]

FROM ${SANDBOX}
COPY --from=assembled /opt/cellblock/layer /opt/cellblock/layer
ENV PATH=/usr/local/bin:/usr/bin:/bin:/opt/cellblock/layer/bin
