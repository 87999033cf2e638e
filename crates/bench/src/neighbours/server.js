// A server of node: a table of objects on the heap, some of which are made anew by requests.
const [port, keys] = process.argv.slice(2).map(Number);
const table = new Map();
const made = (key) => 'x'.repeat(1000) + String(key).padStart(24);
for (let key = 0; key < keys; key++) table.set(key, made(key));
require('http').createServer((request, response) => {
    const key = Number(request.url.slice(1));
    if (key % 4 === 0) table.set(key, made(key));
    const answer = table.get(key);
    response.writeHead(200, { 'Content-Length': answer.length });
    response.end(answer);
}).listen(port, '127.0.0.1');
