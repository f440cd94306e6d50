// A client over @jupyterlab/services, as VS Code's is: node labservices.cjs URL TOKEN. Prints what it saw as JSON.

const { KernelAPI, KernelManager, KernelSpecManager, ServerConnection, SessionManager } = require('@jupyterlab/services');
const WebSocket = require('ws');

async function main(baseUrl, token) {
  const serverSettings = ServerConnection.makeSettings({
    baseUrl, wsUrl: baseUrl.replace('http', 'ws'), token, appendToken: true, WebSocket, fetch, Request, Headers,
  });
  const kernelManager = new KernelManager({ serverSettings });
  const specs = new KernelSpecManager({ serverSettings });
  const sessions = new SessionManager({ kernelManager, serverSettings });
  await Promise.all([sessions.ready, specs.ready]);
  const saw = { specs: Object.keys(specs.specs.kernelspecs) };
  const wish = { path: 'a-1.ipynb', name: 'a', type: 'notebook', kernel: { name: 'python3' } };
  const session = await sessions.startNew(wish);

  const run = async (code, during = () => {}) => {
    const future = session.kernel.requestExecute({ code });
    const texts = [];
    future.onIOPub = ({ content }) => texts.push(content.text ?? content.data?.['text/plain'] ?? content.ename ?? '');
    future.onStdin = ({ header }) => session.kernel.sendInputReply({ status: 'ok', value: 'Ada' }, header);
    during();
    const reply = await future.done;
    return [reply.content.status, texts.join('')];
  };

  saw.language = (await session.kernel.info).language_info.name;
  saw.cell = await run("print('out'); 6 * 7");
  saw.input = await run("input('name? ')");
  saw.interrupted = await run('import time; time.sleep(100)', () => setTimeout(() => session.kernel.interrupt(), 1000));
  await session.kernel.restart();
  saw.restarted = await run("'time' in globals()");
  await sessions.refreshRunning();
  saw.sessions = [...sessions.running()].map((model) => model.path);
  await session.setPath('b.ipynb');
  await session.changeKernel({ name: 'default' });
  saw.changed = [session.path, session.kernel.name, (await run('1'))[0]];
  await session.shutdown();
  saw.left = (await KernelAPI.listRunning(serverSettings)).length;
  console.log(`saw ${JSON.stringify(saw)}`);
  process.exit(0);
}

main(process.argv[2], process.argv[3]);
