// Parses TraceQL: node parse.js < queries as a JSON list; for each query, the positions of its errors
import { readFileSync } from 'node:fs'
import { parser } from '@grafana/lezer-traceql'

const errors = (query) => {
  const found = []
  parser.parse(query).iterate({ enter: (node) => { if (node.type.isError) found.push(node.from) } })
  return found
}
console.log(JSON.stringify(JSON.parse(readFileSync(0, 'utf8')).map(errors)))
