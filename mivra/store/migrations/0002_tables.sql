-- The tables. Money is numeric, times are timestamptz; checks make impossible rows impossible.

create table deployment (
  only_row boolean primary key default true check (only_row),
  timezone text not null default 'UTC' check ((timestamptz '2000-01-01Z' at time zone timezone) is not null),
  currency text not null default 'USD' check (currency ~ '^[A-Z]{3}$'),
  sample_data boolean not null default false,
  initialised boolean not null default false
);
comment on table deployment is 'One row: the reporting time zone and currency, and whether sample data is loaded';
comment on column deployment.initialised is 'Sample data was loaded or removed once: an empty database stays as it is';
insert into deployment default values;
-- Never large enough for the automatic one: without it the planner takes its one row for hundreds.
analyze deployment;

create table profiles (
  user_id uuid primary key default gen_random_uuid(),
  email text check (email ~ '^[^@[:space:]]+@[^@[:space:]]+$'),
  created_at timestamptz not null default now()
);
comment on table profiles is 'The platform''s users; created_at is the sign-up';
create unique index profiles_email_key on profiles (lower(email));
create index profiles_created_at_idx on profiles (created_at);

create table bot_control (
  bot_id text primary key check (bot_id ~ '^[a-z0-9][a-z0-9_-]{0,62}$'),
  user_id uuid references profiles,
  name text not null check (length(name) between 1 and 100),
  desired text not null default 'stopped' check (desired in ('running', 'paused', 'stopped')),
  config jsonb not null default '{}' check (jsonb_typeof(config) = 'object'),
  generation bigint not null default 0,
  requested_by text,
  reason text,
  request_id uuid,
  requested_at timestamptz not null default now(),
  start_deadline timestamptz
);
comment on table bot_control is 'Desired state, one row a bot; written by people through request_bot, never by the listener';

create table bot_status (
  bot_id text primary key references bot_control on delete cascade,
  state text not null default 'stopped'
    check (state in ('stopped', 'starting', 'running', 'pausing', 'paused', 'stopping', 'failed')),
  observed_generation bigint not null default 0,
  holder text,
  term bigint not null default 0,
  host text,
  pid integer check (pid > 0),
  pid_started numeric,
  since timestamptz not null default now(),
  heartbeat_at timestamptz,
  progress jsonb not null default '{}',
  attempts integer not null default 0 check (attempts >= 0),
  next_retry_at timestamptz,
  error text
);
comment on table bot_status is 'Observed state, one row a bot; written by the acting listener under its term, never by people';

create table leases (
  name text primary key,
  holder text not null,
  term bigint not null,
  expires_at timestamptz not null
);
comment on table leases is 'Who may act, by the database''s clock; term is the fencing token of every status write';

create table bot_audit (
  id bigint generated always as identity primary key,
  at timestamptz not null default now(),
  bot_id text not null,
  actor text not null,
  action text not null,
  reason text,
  request_id uuid,
  generation bigint not null,
  source text not null,
  old jsonb,
  new jsonb
);
comment on table bot_audit is 'Who changed what a bot should do, when, why and from where; append-only';
create unique index bot_audit_request_id_key on bot_audit (request_id) where request_id is not null;
create index bot_audit_bot_idx on bot_audit (bot_id, id);

create table trade_history (
  id bigint generated always as identity primary key,
  external_id text not null unique check (length(external_id) between 1 and 200),
  user_id uuid not null references profiles,
  bot_id text,
  account_type text not null check (account_type in ('real', 'demo')),
  asset text not null check (length(asset) between 1 and 64),
  direction text not null check (direction in ('call', 'put')),
  stake numeric not null check (stake > 0 and stake < 'infinity'),
  payout_rate numeric not null check (payout_rate > 0 and payout_rate <= 10),
  expiration_seconds integer not null check (expiration_seconds between 1 and 86400),
  strategy text check (length(strategy) between 1 and 64),
  status text not null check (status in ('open', 'closed', 'void')),
  result text check (result in ('WIN', 'LOSS', 'TIE')),
  pnl numeric,
  opened_at timestamptz not null,
  expires_at timestamptz not null,
  closed_at timestamptz,
  -- The bounds keep out infinity, and years that a client cannot read: one such row would break every list it is in.
  constraint trade_times check (
    expires_at > opened_at and closed_at >= opened_at
    and opened_at >= '2000-01-01Z' and greatest(expires_at, closed_at) < '2200-01-01Z'),
  constraint trade_whole check (
    case status
      when 'closed' then result is not null and pnl is not null and closed_at is not null
      when 'open' then result is null and pnl is null and closed_at is null
      else result is null and pnl is null
    end
  ),
  -- A broker rounds what it pays to its smallest coin: a win may differ from stake x rate by one hundredth.
  constraint trade_pnl check (
    case result
      when 'WIN' then pnl > 0 and abs(pnl - stake * payout_rate) <= 0.01
      when 'LOSS' then pnl = -stake
      when 'TIE' then pnl = 0
      else true
    end
  )
);
comment on table trade_history is 'One row an option: opened with a stake, closed as WIN, LOSS or TIE, or void';

create table strategy_trades (
  id bigint generated always as identity primary key,
  asset text not null,
  timeframe_seconds integer not null check (timeframe_seconds > 0),
  strategy text not null,
  direction text not null check (direction in ('call', 'put')),
  entry_price numeric not null check (entry_price > 0),
  exit_price numeric check (exit_price > 0),
  result text not null default 'PENDING' check (result in ('PENDING', 'WIN', 'LOSS', 'TIE', 'VOID')),
  signal_timestamp timestamptz not null,
  expires_at timestamptz not null check (expires_at > signal_timestamp)
);
comment on table strategy_trades is 'Signals of the market scanner and what became of them';

create table scanner_performance (
  asset text not null,
  timeframe_seconds integer not null check (timeframe_seconds > 0),
  signals bigint not null default 0 check (signals >= 0),
  wins bigint not null default 0 check (wins >= 0),
  losses bigint not null default 0 check (losses >= 0),
  ties bigint not null default 0 check (ties >= 0),
  updated_at timestamptz not null default now(),
  primary key (asset, timeframe_seconds),
  check (wins + losses + ties <= signals)
);
comment on table scanner_performance is 'Win rate of the scanner''s signals per asset and time frame';

-- Nothing is readable through PostgREST until a policy says so; the owner is not affected.
alter table deployment enable row level security;
alter table profiles enable row level security;
alter table bot_control enable row level security;
alter table bot_status enable row level security;
alter table leases enable row level security;
alter table bot_audit enable row level security;
alter table trade_history enable row level security;
alter table strategy_trades enable row level security;
alter table scanner_performance enable row level security;
revoke all on deployment, profiles, bot_control, bot_status, leases, bot_audit, trade_history, strategy_trades,
  scanner_performance, mivra_migrations from anon, authenticated;
