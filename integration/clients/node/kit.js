// The address of the server (from the environment, set by integration/tests/clients.rs), and a test runner without dependencies.
const host = '127.0.0.1';
const port = Number(process.env.BRIDLE_PORT);
const tlsPort = Number(process.env.BRIDLE_TLS_PORT);
const ca = require('fs').readFileSync(process.env.BRIDLE_CA);
const password = process.env.BRIDLE_PASSWORD;

// Runs tests one after another; a test is [sentence, async function].
async function run(tests) {
  let failed = 0;
  for (const [sentence, test] of tests) {
    try {
      await test();
      console.log(`ok: ${sentence}`);
    } catch (error) {
      failed += 1;
      console.log(`FAILED: ${sentence}\n${error.stack}`);
    }
  }
  process.exit(failed ? 1 : 0);
}

module.exports = { host, port, tlsPort, ca, password, run };
