-- Only an empty database; whoever else fills it at the same moment waits, and is then refused.
lock table profiles, bot_control, trade_history in share row exclusive mode;
do $$
begin
  if exists (select from trade_history) or exists (select from profiles) or exists (select from bot_control) then
    raise exception 'The database already has users, bots or trades; sample data is only for an empty one'
      using errcode = 'PT422';
  end if;
end
$$;
-- Its days are those of UTC.
set local timezone = 'UTC';
create temporary table sample_asset (asset text, kind text, weight float) on commit drop;
