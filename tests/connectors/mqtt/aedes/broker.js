// Runs Aedes on 127.0.0.1: node broker.js <aedes-mqtt3 or aedes-mqtt5> <port> <options as JSON>
import { createServer } from 'node:net'

const [name, port, options] = process.argv.slice(2)
const { Aedes } = await import(name)
const broker = await Aedes.createBroker(JSON.parse(options))
createServer(broker.handle).listen(Number(port), '127.0.0.1')
