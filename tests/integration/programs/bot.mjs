// Options of 3 s on EURUSD, one at a time; a coin decides how they end.
import { createInterface } from 'node:readline'

const say = (type, fields) => process.stdout.write(JSON.stringify({ type, ...fields }) + '\n')
const told = new Set()
let option = null
let count = 0
let loops = 0

const answers = {
  start: () => say('state', { state: 'running' }),
  pause: () => say('state', { state: 'paused' }),
  resume: () => told.delete('pause') && say('state', { state: 'running' }),
  release: () => told.delete('hold'),
}
createInterface({ input: process.stdin }).on('line', (line) => {
  const { type } = JSON.parse(line)
  told.add(type)
  answers[type]?.()
})
process.on('SIGTERM', () => {}) // the stop line comes too

function close(now) {
  const won = Math.random() < 0.5
  say('trade', { ...option, status: 'closed', result: won ? 'WIN' : 'LOSS', pnl: won ? '17.00' : '-20.00', closed_at: now })
  option = null
}

function open(now) {
  option = {
    external_id: `${process.pid}-${now.toISOString()}-${(count += 1)}`,
    account_type: 'demo', asset: 'EURUSD', direction: 'put', stake: '20', payout_rate: '0.85',
    expiration_seconds: 3, strategy: 'coin', opened_at: now, expires_at: new Date(now.getTime() + 3000),
  }
  say('trade', option)
}

setInterval(() => {
  const now = new Date()
  say('beat', { loops: (loops += 1) })
  if (option && now >= option.expires_at) close(now)
  else if (!option && told.has('stop')) process.exit(0)
  else if (!option && !told.has('pause') && !told.has('hold')) open(now)
}, 250)
