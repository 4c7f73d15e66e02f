-- Where the records of a file wait until all are read.
create temp table staged (
  line bigint, reason text, external_id text, user_id uuid, email text, bot_id text, account_type text, asset text,
  direction text, stake numeric, payout_rate numeric, expiration_seconds integer, strategy text, status text,
  result text, pnl numeric, opened_at timestamptz, expires_at timestamptz, closed_at timestamptz
) on commit drop;
