#!/bin/sh
# Options of 3 s on EURUSD, one at a time; a coin decides how they end.
told=$(mktemp -d) run=$(date +%s) n=0 loops=0 open='' said='' ending=''
trap 'ending=yes' TERM
exec 3<&0
while read -r line; do
  case $line in
    *'"type":"pause"'*) : >"$told/pause" ;;
    *'"type":"resume"'*) rm -f "$told/pause" ;;
    *'"type":"hold"'*) : >"$told/hold" ;;
    *'"type":"release"'*) rm -f "$told/hold" ;;
  esac
done <&3 &
option() {
  printf '{"type":"trade","external_id":"%s-%s","account_type":"demo","asset":"EURUSD","direction":"call",' "$run" "$n"
  printf '"stake":20,"payout_rate":0.85,"expiration_seconds":3,"strategy":"coin",'
  printf '"opened_at":%s,"expires_at":%s%s}\n' "$open" $((open + 3)) "$1"
}
while sleep 1; do
  now=$(date +%s) state=running
  if [ -e "$told/pause" ]; then state=paused; fi
  if [ $state != "$said" ]; then printf '{"type":"state","state":"%s"}\n' $state; said=$state; fi
  printf '{"type":"beat","loops":%s}\n' $((loops += 1))
  if [ -n "$open" ] && [ "$now" -ge $((open + 3)) ]; then
    if [ $((now % 2)) = 0 ]; then end='"WIN","pnl":17'; else end='"LOSS","pnl":-20'; fi
    option ",\"status\":\"closed\",\"result\":$end,\"closed_at\":$now"
    open=''
  elif [ -z "$open$ending$(ls "$told")" ]; then
    open=$now n=$((n + 1))
    option ''
  fi
  if [ -z "$open" ] && [ -n "$ending" ]; then rm -r "$told"; exit 0; fi
done
